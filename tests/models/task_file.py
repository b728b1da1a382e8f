"""Writes the small models' held-out questions as task files for `vllm-amdopt accuracy`.

    python -m tests.models.task_file DIRECTORY [--items N]

One file a task, JSON lines with `prompt` and `answer`: for `accuracy tasks --task-file
recall=DIRECTORY/recall.jsonl`, and for `accuracy logits --prompts`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.models.tasks import TASKS, held_out


def write_task_files(folder: Path, items: int) -> list[Path]:
    """The first `items` held-out questions of each task."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for task in TASKS:
        lines = (
            json.dumps({"prompt": item.prompt, "answer": item.answer})
            for item in held_out(task, items)
        )
        paths.append(folder / f"{task}.jsonl")
        paths[-1].write_text("\n".join(lines) + "\n")
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--items", type=int, default=128)
    options = parser.parse_args()
    for path in write_task_files(options.directory, options.items):
        print(path)


if __name__ == "__main__":
    main()
