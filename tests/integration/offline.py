"""Generate with real vLLM in another process: what the tests call.

`Jobs` keeps one program (see `offline_program`) for each kind of platform, and remembers results,
so that the stock answers are made once per test session.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.models import tasks
from tests.serving import CACHES, QUIET_ENVIRONMENT

MODELS = Path(__file__).parents[1] / "models" / "checkpoints"
GQA, MLA, MOE = "llama-gqa", "deepseek-mla-moe", "qwen3-moe"

ARGUMENTS: Mapping[str, Any] = {
    "max_model_len": 512,
    "kv_cache_memory_bytes": 64 << 20,
    "enforce_eager": True,
    # vLLM's C++ rotary embedding for CPUs is wrong for MLA's three-dimensional queries; both arms
    # go without it.
    "compilation_config": {"custom_ops": ["all", "-rotary_embedding"]},
}


@dataclass(frozen=True)
class Answer:
    """One request's answer; `cached_tokens` of its prompt came from the prefix cache.

    `leads` are by how much each token beat the runner-up, in nats.
    """

    text: str
    token_ids: tuple[int, ...]
    leads: tuple[float, ...]
    cached_tokens: int


@dataclass(frozen=True)
class Result:
    """What a job gave. `error` is None where it went well; `log` is everything that was printed."""

    rounds: tuple[tuple[Answer, ...], ...]
    log: str
    error: str | None
    block_size: int | None
    chunked_prefill: bool | None
    plan: Mapping[str, Any] | None
    disabled: Mapping[str, str]
    launches: Mapping[str, int]

    def tokens(self, round_: int = 0) -> list[tuple[int, ...]]:
        """The token ids of all answers of one round."""
        return [answer.token_ids for answer in self.rounds[round_]]

    def is_on(self, name: str) -> bool:
        """Whether the plan of this run has the feature or default on."""
        decisions = self.plan["decisions"] if self.plan else ()
        return any(decision["name"] == name and decision["on"] for decision in decisions)


def _answer(record: Mapping[str, Any]) -> Answer:
    return Answer(**{k: tuple(v) if isinstance(v, list) else v for k, v in record.items()})


def questions(count: int) -> list[tasks.Item]:
    """`count` held-out items of each task."""
    return [item for task in tasks.TASKS for item in tasks.held_out(task, count)]


class Jobs:
    """Runs jobs; a context manager, because the programs that do it have to end."""

    def __init__(self) -> None:
        self._programs: dict[tuple[tuple[str, str], ...], subprocess.Popen[str]] = {}
        self._results: dict[str, Result] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="vllm-amdopt-offline-")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._programs.values():
            program.terminate()
            program.wait()
        self._folder.cleanup()

    def run(
        self,
        model: str,
        rounds: Sequence[Sequence[str]],
        *,
        environment: Mapping[str, str],
        max_tokens: int = 8,
        arguments: Mapping[str, Any] | None = None,
    ) -> Result:
        """Answer `rounds` of prompts; equal calls run once."""
        job = {
            "model": str(MODELS / model),
            "rounds": [list(prompts) for prompts in rounds],
            "max_tokens": max_tokens,
            "environment": dict(environment),
            "arguments": {**ARGUMENTS, **(arguments or {})},
        }
        key = json.dumps(job, sort_keys=True)
        if key not in self._results:
            self._results[key] = self._run(job)
        return self._results[key]

    def stock(self, model: str, prompts: Sequence[str], **options: Any) -> Result:
        """The same by vLLM without the plugin."""
        return self.run(model, [prompts], environment={"VLLM_AMDOPT": "0"}, **options)

    def _run(self, job: dict[str, Any]) -> Result:
        number = len(self._results)
        log = Path(self._folder.name) / f"{number}.log"
        result = Path(self._folder.name) / f"{number}.json"
        program = self._program(job["environment"])
        assert program.stdin is not None and program.stdout is not None
        program.stdin.write(json.dumps({**job, "log": str(log), "result": str(result)}) + "\n")
        program.stdin.flush()
        assert program.stdout.readline().strip() == "done", "the job's program died"
        record: dict[str, Any] = json.loads(result.read_text())
        return Result(
            rounds=tuple(
                tuple(_answer(a) for a in answers) for answers in record.get("rounds", ())
            ),
            log=log.read_text(errors="replace"),
            error=record.get("error"),
            block_size=record.get("block_size"),
            chunked_prefill=record.get("chunked_prefill"),
            plan=record.get("plan"),
            disabled=record.get("disabled", {}),
            launches=record.get("launches", {}),
        )

    def _program(self, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """The running program whose platform suits a job with this environment."""
        base = {"VLLM_AMDOPT": "0" if environment.get("VLLM_AMDOPT") == "0" else "1"}
        if environment.get("VLLM_AMDOPT_CPU_ENGINE") == "interpreter":
            base |= {"VLLM_AMDOPT_CPU_ENGINE": "interpreter", "TRITON_INTERPRET": "1"}
        key = tuple(sorted(base.items()))
        if key not in self._programs:
            inherited = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
            program = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.offline_program"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=Path(__file__).parents[2],
                env={
                    **inherited,
                    **QUIET_ENVIRONMENT,
                    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                    "VLLM_CACHE_ROOT": str(CACHES / "vllm"),
                    **base,
                },
            )
            assert program.stdout is not None
            with contextlib.suppress(StopIteration):
                # vLLM may print before the program does.
                next(line for line in program.stdout if line.strip() == "ready")
            self._programs[key] = program
        return self._programs[key]
