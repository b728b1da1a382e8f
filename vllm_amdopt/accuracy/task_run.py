"""Lets lm-eval put tasks to a running server, in a process of its own; it judges no answer.

The prompts go as text to the completions endpoint, so that everything behind it is the server's.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_amdopt.accuracy.task_folder import Sample, SamplesError, read_samples
from vllm_amdopt.accuracy.task_items import Task
from vllm_amdopt.bench.processes import end_session, prepare_child
from vllm_amdopt.bench.server import last_line

POLL_SECONDS = 0.2


class TaskRunError(RuntimeError):
    """The tasks could not be put to this server; one sentence."""


@dataclass(frozen=True)
class Evaluation:
    """How lm-eval asks. `request_seconds`: for one answer; `seconds`: for all tasks together."""

    concurrency: int
    request_seconds: int
    seconds: float


def missing_lm_eval() -> str:
    """Why tasks cannot be run here; empty where lm-eval is installed."""
    if importlib.util.find_spec("lm_eval") is None:
        return (
            "the tasks are run by lm-eval, which is not installed: "
            "`pip install 'vllm-amdopt[eval]'` (it brings no torch)"
        )
    return ""


def run_tasks(
    tasks: Sequence[Task],
    names: Sequence[str],
    evaluation: Evaluation,
    *,
    url: str,
    model: str,
    task_folder: Path,
    folder: Path,
    environment: Mapping[str, str],
    died: Callable[[], str | None],
) -> dict[str, dict[int, Sample]]:
    """Answers to every item. `died` says why the server is dead, or None while it lives."""
    folder.mkdir(parents=True, exist_ok=True)
    log, samples, path = folder / "lm_eval.log", folder / "samples.json", folder / "job.json"
    job = {
        "model_args": {
            "model": model,
            "base_url": f"{url}/v1/completions",
            # The server's tokenizer does it, and nothing is cut to a length that is not its own.
            "tokenizer_backend": "none",
            "num_concurrent": evaluation.concurrency,
            "timeout": evaluation.request_seconds,
            "max_retries": 1,
        },
        "tasks": list(names),
        "include_path": str(task_folder),
        "out": str(samples),
    }
    path.write_text(json.dumps(job))
    command = [sys.executable, "-m", "vllm_amdopt.accuracy.lm_eval_program", str(path)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(environment, folder),
            start_new_session=True,
            preexec_fn=prepare_child,
        )
    try:
        wait_for(process, evaluation.seconds, died)
    finally:
        end_session(process.pid)
        process.wait()
    if process.returncode != 0:
        raise TaskRunError(
            died()
            or f"lm-eval ended with exit code {process.returncode}: "
            f"{last_line(log.read_text(errors='replace'))} (log: {log})"
        )
    try:
        return read_samples(samples, tasks)
    except SamplesError as error:
        raise TaskRunError(f"{error} (log: {log})") from error


def wait_for(
    process: subprocess.Popen[bytes], seconds: float, died: Callable[[], str | None]
) -> None:
    """Returns when the process has ended; TaskRunError if the server dies or time is over."""
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        reason = died()
        if reason is not None:
            raise TaskRunError(reason)
        if time.monotonic() > deadline:
            raise TaskRunError(
                f"the tasks were not done within {seconds:.0f} s: ask for fewer items, or give "
                "them more with --arm-timeout"
            )
        time.sleep(POLL_SECONDS)


def _environment(given: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The caller's, without what sends requests elsewhere, and with no model hub to ask."""
    proxies = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    return {name: value for name, value in given.items() if name.lower() not in proxies} | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
