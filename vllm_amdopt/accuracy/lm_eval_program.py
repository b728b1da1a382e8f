"""Lets lm-eval put tasks to a server and writes what it answered; a subprocess of `tasks`.

    python -m vllm_amdopt.accuracy.lm_eval_program JOB.json

Not lm-eval's own command line, because that reads the thousands of tasks that it ships, which takes
longer than ours take to run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIELDS = ("doc_id", "doc_hash", "prompt_hash", "target_hash", "filtered_resps", "exact_match")
"""What the samples keep of lm-eval's: the prompts stand in the tasks' own files."""


def main(arguments: Sequence[str] | None = None) -> int:
    (path,) = sys.argv[1:] if arguments is None else arguments
    job: dict[str, Any] = json.loads(Path(path).read_text())

    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        model="local-completions",
        model_args=job["model_args"],
        tasks=job["tasks"],
        task_manager=TaskManager(include_path=job["include_path"], include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        batch_size=1,
    )
    samples = {
        task: [{field: row.get(field) for field in FIELDS} for row in rows]
        for task, rows in found["samples"].items()
    }
    Path(job["out"]).write_text(json.dumps(samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
