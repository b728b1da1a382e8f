"""Drives `vllm bench serve` against a running server and reads what it measured.

The load generator is vLLM's own, in processes of its own; this module knows its command line, its
result file, and that it exits with 0 even when every request failed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from vllm_amdopt.bench.plan import Level
from vllm_amdopt.bench.processes import end_session, prepare_child, processor_seconds

PERCENTILES = "50,90,95,99"
START_SECONDS = 600.0
"""For importing vLLM once, on a machine that is busy with something else."""

_NOT_METRICS = ("max_concurrent_requests", "num_prompts", "burstiness", "max_concurrency")
"""Left out of a row: the first counts whole seconds (32 were seen under a limit of 8)."""

COUNTS = ("completed", "failed")
_OF_SURVIVORS = (
    *COUNTS,
    "duration",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "output_throughput",
    "total_token_throughput",
)
"""What still means something where some requests failed."""


class LoadError(RuntimeError):
    """A run of the load generator that measured nothing; the message is a sentence."""


class RunTimeoutError(LoadError):
    """The run did not end: the server hangs, and more runs would, too."""


@dataclass(frozen=True)
class LoadResult:
    """One run: its numbers, and what only the result file has.

    `client_share`: processor time of the load generator over the measured time, of one core; None
    where it was too short to tell. `text_digest` identifies all answers together. `failure`: that
    requests failed, in a sentence; the metrics then are counts and rates of those that did not, and
    no latency, because the slow ones may be those that failed.
    """

    metrics: Mapping[str, float]
    failure: str | None = None
    client_share: float | None = None
    text_digest: str = ""


class Drive(Protocol):
    """Something that runs one load against a server; a test puts its own here."""

    def __call__(
        self, arguments: Sequence[str], result: Path, seconds: float, check: Callable[[], None]
    ) -> LoadResult: ...


def bench_arguments(
    level: Level, *, base_url: str, served_name: str, tokenizer: str, prompts: int, seed: int
) -> list[str]:
    """`vllm ARGUMENTS` for one run; greedy, with the answers' lengths fixed by the load."""
    arguments = ["bench", "serve", "--base-url", base_url, "--model", served_name]
    arguments += ["--tokenizer", tokenizer, "--dataset-name", level.dataset]
    if level.dataset == "random":
        arguments += ["--random-input-len", str(level.input_len)]
        arguments += ["--random-output-len", str(level.output_len)]
        if level.range_ratio:
            arguments += ["--random-range-ratio", f"{level.range_ratio:g}"]
    else:
        arguments += ["--dataset-path", str(level.dataset_path)]
        if level.output_len:
            arguments += [f"--{level.dataset}-output-len", str(level.output_len)]
    arguments += ["--num-prompts", str(prompts), "--seed", str(seed), "--ignore-eos"]
    if level.concurrency is not None:
        arguments += ["--max-concurrency", str(level.concurrency)]
    else:
        arguments += ["--request-rate", f"{level.request_rate:g}"]
    # Sampling would follow the model's generation_config, which costs time of its own.
    arguments += ["--temperature", "0", "--disable-tqdm"]
    arguments += ["--percentile-metrics", "ttft,tpot,itl,e2el"]
    arguments += ["--metric-percentiles", PERCENTILES]
    return arguments


def read_result(path: Path, prompts: int) -> LoadResult:
    """The numbers of a result file; LoadError where there are none.

    Rewrites the file with a digest of the answers in their place.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError("the load generator left no result") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"the load generator's result {path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise LoadError(f"the load generator's result {path} is not a JSON object")
    failure = _failed_requests(raw, prompts)
    texts = raw.pop("generated_texts", None)
    digest = ""
    if isinstance(texts, list):
        digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
        raw["generated_texts_sha256"] = digest
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(raw), encoding="utf-8")
        os.replace(temporary, path)
    metrics = {
        key: float(value)
        for key, value in raw.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and key not in _NOT_METRICS
    }
    if failure is not None:
        metrics = {key: value for key, value in metrics.items() if key in _OF_SURVIVORS}
        if not metrics.get("completed"):  # all rates are zero then, and none is a measurement
            metrics = {key: value for key, value in metrics.items() if key in COUNTS}
        return LoadResult(metrics, failure)
    broken = [key for key, value in metrics.items() if not math.isfinite(value)]
    # An infinite request rate is the load's, not a measurement.
    broken = [key for key in broken if key != "request_rate"]
    metrics.pop("request_rate", None)
    if broken:
        raise LoadError(f"the load generator reports {broken[0]} = {metrics[broken[0]]}")
    if metrics.get("duration", 0.0) <= 0 or metrics.get("total_output_tokens", 0.0) <= 0:
        raise LoadError("the load generator measured no time or no tokens")
    return LoadResult(metrics, text_digest=digest)


def _failed_requests(raw: Mapping[str, Any], prompts: int) -> str | None:
    """`vllm bench serve` counts only what succeeded, and ends with 0 where nothing did."""
    completed, failed = int(raw.get("completed") or 0), int(raw.get("failed") or 0)
    if completed == prompts and not failed:
        return None
    errors = [text for text in raw.get("errors", ()) if text]
    lines = str(errors[0]).strip().splitlines() if errors else []
    said = f"; the first said: {lines[-1][:200]}" if lines else ""
    return f"{max(failed, prompts - completed)} of {prompts} requests failed{said}"


@dataclass
class LoadClient:
    """The process that `load_process` is; started at the first run, ended by `close`.

    `environment`: the caller's, complete; the plugin stays out of the load generator.
    """

    environment: Mapping[str, str]
    log: Path
    command: tuple[str, ...] = field(
        default=(sys.executable, "-m", "vllm_amdopt.bench.load_process")
    )
    _process: subprocess.Popen[str] | None = None
    _answers: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)

    def __call__(
        self, arguments: Sequence[str], result: Path, seconds: float, check: Callable[[], None]
    ) -> LoadResult:
        """Run `vllm ARGUMENTS` with its result in the file `result`; LoadError if it fails.

        `check` is called while it runs and may raise, which ends the run.
        """
        process = self._started(check)
        result.parent.mkdir(parents=True, exist_ok=True)
        log = result.with_suffix(".log")
        words = [*arguments, "--save-result", "--save-detailed"]
        words += ["--result-dir", str(result.parent), "--result-filename", result.name]
        assert process.stdin is not None
        process.stdin.write(json.dumps({"arguments": words, "log": str(log)}) + "\n")
        process.stdin.flush()
        child = int(self._answer(time.monotonic() + 60.0, lambda: None)["process"])
        samples: deque[tuple[float, float]] = deque()

        def watch() -> None:
            used = processor_seconds(child)
            if used is not None:
                samples.append((time.monotonic(), used))
            check()

        try:
            code = int(self._answer(time.monotonic() + seconds, watch)["code"])
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            with contextlib.suppress(LoadError):
                self._answer(time.monotonic() + 10.0, lambda: None)
            if isinstance(error, TimeoutError):
                raise RunTimeoutError(
                    f"the run was not over within {seconds:.0f} s (--run-timeout): the server "
                    "answers no longer, or far too slowly"
                ) from None
            raise
        if code != 0:
            raise LoadError(f"the load generator ended with code {code}: {_last_line(log)}")
        prompts = int(arguments[arguments.index("--num-prompts") + 1])
        measured = read_result(result, prompts)
        share = share_of_core(samples, measured.metrics.get("duration", 0.0))
        return replace(measured, client_share=share)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            end_session(process.pid, grace_seconds=0.5)
            process.wait()

    def _started(self, check: Callable[[], None]) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**self.environment, "VLLM_AMDOPT": "0", "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                start_new_session=True,
                preexec_fn=prepare_child,
            )
        self._answers = queue.Queue()
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        try:
            self._answer(time.monotonic() + START_SECONDS, check)
        except TimeoutError:
            self.close()
            raise LoadError(
                f"the load generator did not start within {START_SECONDS:.0f} s; see {self.log}"
            ) from None
        return self._process

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                self._answers.put(json.loads(line))
        self._answers.put({"ended": True})

    def _answer(self, deadline: float, check: Callable[[], None]) -> dict[str, Any]:
        while True:
            try:
                answer = self._answers.get(timeout=0.2)
            except queue.Empty:
                check()
                if time.monotonic() > deadline:
                    raise TimeoutError from None
                continue
            if "ended" in answer:
                self._process = None
                raise LoadError(f"the load generator ended: {_last_line(self.log)}")
            return answer


def share_of_core(samples: Sequence[tuple[float, float]], duration: float) -> float | None:
    """Processor time over time in the last `duration` seconds of `samples` (when, seconds used).

    A run ends with its measured part; what comes after it, writing the result, is short.
    """
    if len(samples) < 2:
        return None
    end_time, end_used = samples[-1]
    inside = [sample for sample in samples if sample[0] >= end_time - duration]
    time_inside = end_time - inside[0][0]
    # Samples come every fifth of a second, in steps of a hundredth: less than two say nothing.
    return (end_used - inside[0][1]) / time_inside if time_inside >= 0.35 else None


def _last_line(log: Path) -> str:
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return lines[-1].strip()[:300] if lines else "it wrote nothing"
