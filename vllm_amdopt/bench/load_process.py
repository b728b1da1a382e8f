"""`vllm bench serve`, run again and again without importing vLLM each time; no load generator.

    python -m vllm_amdopt.bench.load_process      (started by `load`, not by hand)

Importing vLLM takes about nine processor seconds, more than many runs. So this process imports it
once and forks for each run; the child calls the very function behind the `vllm` command with the
run's command line. Reads one JSON object a line, {"arguments": [...], "log": FILE}; answers with
{"process": id} and, when the run is over, {"code": exit code}.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback

PRELOADED = (
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.benchmark.main",
    "vllm.entrypoints.cli.openai",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.cli.launch",
    "vllm.entrypoints.cli.run_batch",
    "vllm.benchmarks.serve",
    "vllm.platforms",
)


def preload() -> None:
    """Import what a run needs. What this vLLM has not, it does not need either."""
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def run_in_child(arguments: list[str], log: str) -> int:
    """In the forked process: `vllm ARGUMENTS`, everything it prints to `log`; its exit code."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(target, 1)
    os.dup2(target, 2)
    sys.argv = ["vllm", *arguments]
    try:
        importlib.import_module("vllm.entrypoints.cli.main").main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def main() -> int:
    """Serve runs until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what an import prints must not be taken for an answer
    preload()
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(run_in_child(request["arguments"], request["log"]))
        print(json.dumps({"process": child}), file=answers)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), file=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
