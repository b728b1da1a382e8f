"""Runs programs that import vLLM as forks of one process that has imported what vLLM imports.

Not a test. Most of the seconds that `import vllm` takes go to PyTorch's compiler and transformers,
which know nothing of the machine; each fork imports vLLM itself, after its stand-ins and with its
own environment, as a process of its own would.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

ROOT = Path(__file__).parents[2]

IMPORTED_BEFORE = (
    "torch",
    "torch._dynamo",
    "torch._inductor.standalone_compile",
    "torch._inductor.lowering",
    "transformers",
    "transformers.configuration_utils",
    "transformers.modeling_utils",
    "transformers.processing_utils",
)
"""Where `python -X importtime` sees most of a program's imports go, vLLM's own left out."""


class ForkedPrograms:
    """A process that forks; a context manager, because it has to end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.communicate()

    def run(self, module: str, *arguments: str, **variables: str) -> str:
        """What `python -m module arguments...` prints, in this environment without VLLM_* and with
        `variables`. Fails, with the end of what it wrote, where the program does."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={k: v for k, v in os.environ.items() if not k.startswith("VLLM_")},
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        question = {"module": module, "arguments": arguments, "variables": variables}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that forks has died"
        answer = json.loads(line)
        assert answer["status"] == 0, answer["errors"][-4000:]
        return str(answer["output"])


def _in_a_fork(question: dict[str, Any], output: IO[bytes], errors: IO[bytes]) -> int:
    """Run the program in a child whose output goes to these files; the child's exit status."""
    gc.freeze()  # or the collector touches, and so copies, every page that the child shares
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        os.dup2(output.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        os.environ.update(question["variables"])
        sys.argv[1:] = question["arguments"]
        runpy.run_module(question["module"], run_name="__main__", alter_sys=True)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Answer each question (a line of JSON) with a line of JSON."""
    for name in IMPORTED_BEFORE:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for line in sys.stdin:
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            status = _in_a_fork(json.loads(line), output, errors)
            output.seek(0)
            errors.seek(0)
            answer = {
                "status": status,
                "output": output.read().decode(errors="replace"),
                "errors": errors.read().decode(errors="replace"),
            }
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
