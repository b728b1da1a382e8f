"""A load for the harness's tests that starts in no time: it stands in for `vllm bench serve`.

It understands the same arguments and leaves the same kind of result file, which the harness's own
reader reads. It measures well enough to tell a slow server from a fast one, and no better.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vllm_amdopt.bench.load import LoadResult, RunTimeoutError, read_result


def argument(arguments: Sequence[str], name: str, default: str = "") -> str:
    return arguments[arguments.index(name) + 1] if name in arguments else default


class SmallLoad:
    """Sends the requests; `runs` remembers the arguments of each run."""

    def __init__(self) -> None:
        self.runs: list[list[str]] = []

    def __call__(
        self, arguments: Sequence[str], result: Path, seconds: float, check: Callable[[], None]
    ) -> LoadResult:
        self.runs.append(list(arguments))
        prompts = int(argument(arguments, "--num-prompts"))
        workers = int(argument(arguments, "--max-concurrency", "4"))
        body = {
            "model": argument(arguments, "--model"),
            "prompt": "word " * int(argument(arguments, "--random-input-len", "8")),
            "max_tokens": int(argument(arguments, "--random-output-len", "8")),
            "stream": False,
        }
        url = argument(arguments, "--base-url") + "/v1/completions"
        latencies: list[float] = []
        errors: list[str] = []
        tokens = prompt_tokens = 0
        lock = threading.Lock()

        def ask(_: int) -> None:
            nonlocal tokens, prompt_tokens
            request = urllib.request.Request(url, data=json.dumps(body).encode())
            begin = time.perf_counter()
            try:
                # Longer than the run may last, so that a hanging server is the run's finding; the
                # server's end closes the connection.
                with urllib.request.urlopen(request, timeout=seconds + 60) as response:
                    usage = json.loads(response.read())["usage"]
            except Exception as error:
                with lock:
                    errors.append(f"{type(error).__name__}: {error}")
                return
            with lock:
                latencies.append(time.perf_counter() - begin)
                tokens += usage["completion_tokens"]
                prompt_tokens += usage["prompt_tokens"]

        begin = time.perf_counter()
        pool = ThreadPoolExecutor(workers)
        pending = [pool.submit(ask, number) for number in range(prompts)]
        deadline = time.monotonic() + seconds
        try:
            while not all(future.done() for future in pending):
                check()
                if time.monotonic() > deadline:
                    raise RunTimeoutError(
                        f"the run was not over within {seconds:.0f} s (--run-timeout)"
                    )
                time.sleep(0.005)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        duration = time.perf_counter() - begin
        mean = 1000 * statistics.fmean(latencies) if latencies else 0.0
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(
            json.dumps(
                {
                    "completed": len(latencies),
                    "failed": len(errors),
                    "errors": errors,
                    "duration": duration,
                    "total_output_tokens": tokens,
                    "total_input_tokens": prompt_tokens,
                    "output_throughput": tokens / duration,
                    "request_throughput": len(latencies) / duration,
                    "mean_e2el_ms": mean,
                    "generated_texts": [" a"] * len(latencies),
                }
            )
        )
        return read_result(result, prompts)
