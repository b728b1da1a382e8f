"""Shows the measuring tools on this machine: noise, a known slowdown, right and wrong answers.

    python -m benchmarks.bench_demo [--out DIR] [--only NAME ...] [--blocks 4]

Each step is one `vllm-amdopt` command on real `vllm serve` with a trained small model, and says
which exit code it has to end with; the demo ends with 0 only if all do. It shows that the tools
tell what is from what is not. It says nothing about the speed of an AMD GPU: every step of both
servers is held to a fixed time that stands in for a device (tests/step_floor.py).
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.models.task_file import write_task_files
from tests.serving import CACHES, QUIET_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "tests" / "models" / "checkpoints" / "llama-gqa"

QUESTIONS = 40
"""Of each task that the model was trained for."""

VARIABLE = "STEP_FLOOR_MILLISECONDS"  # what tests/step_floor.py reads
FLOOR = 200.0
SLOWED = 1.1 * FLOOR
"""Milliseconds of every step; 10 % more is a server slowed by 10 %.

Much more than the few that a step of the small model takes, because what other processes on the
machine add to a step is noise: up to 12 ms where 18 of them shared its two cores.
"""

SERVE = (
    "--max-model-len 512 --kv-cache-memory-bytes 64M --enforce-eager "
    "--worker-cls tests.step_floor.Worker"
)
ENGINE = "VLLM_AMDOPT=1,VLLM_AMDOPT_CPU_ENGINE=reference"
"""The plugin with its kernels as their PyTorch references: emulated machine code would take hours
for as many tokens."""

BROKEN = f"{ENGINE},VLLM_AMDOPT_INJECT_FAULT=attention_forward:scale=1.01"
"""Every result of the attention kernel is 1 % too large: distributions show it, answers do not."""

LAME = f"{ENGINE},VLLM_AMDOPT_INJECT_FAULT=attention_forward:zero=0.01"
"""Every hundredth row of attention is left out: 1 % of them are wrong, and answers show it."""


@dataclass(frozen=True)
class Step:
    """One command, what it shows, and the exit code that shows it."""

    name: str
    shows: str
    command: tuple[str, ...]
    expected: int


def questions(out: Path) -> Path:
    """Where the questions of the accuracy checks stand."""
    return out / "questions"


def steps(out: Path, blocks: int) -> list[Step]:
    """In the order in which they run; the last one reports on all before."""
    load = (
        f"--model {MODEL} --workload random:16/12 --concurrency 4 --prompts 12 --gpus none "
        f"--primary output_throughput@4 --blocks {blocks} --resume --wait-gpus 1h "
        f"--serve-args {shlex.quote(SERVE)}"
    )
    floor = f"stock:VLLM_AMDOPT=0,{VARIABLE}={FLOOR:g}"
    slowed = f"slowed:VLLM_AMDOPT=0,{VARIABLE}={SLOWED:g}"
    said = shlex.quote(f"every step takes at least {SLOWED:g} ms")
    plain = (
        "--gpus none --wait-gpus 1h "
        "--serve-args '--max-model-len 512 --kv-cache-memory-bytes 64M --enforce-eager'"
    )

    def step(name: str, shows: str, command: str, expected: int) -> Step:
        return Step(name, shows, tuple(shlex.split(command)), expected)

    recall, copy = (questions(out) / f"{task}.jsonl" for task in ("recall", "copy"))
    # Float32: there a kernel that is wrong by 1 % stands far above any rounding.
    logits = (
        f"accuracy logits {MODEL} --cells 1x24,4x64,4x96+2x200 --tokens 12 --prompts {recall} "
        f"{plain[:-1]} --dtype float32 --max-num-batched-tokens 128'"
    )
    tasks = (
        f"accuracy tasks {MODEL} --task-file recall={recall} --task-file copy={copy} "
        f"--items {QUESTIONS} --margin 10% {plain}"
    )
    return [
        step(
            "client",
            "what the load generator reaches by itself",
            f"bench calibrate-client {MODEL}",
            0,
        ),
        step(
            "aa",
            "an arm against itself: no difference beyond the margin of 3 %",
            f"bench aa --a {floor} --margin 3% --require-conclusive --out {out / 'aa'} {load}",
            0,
        ),
        step(
            "ab",
            "an arm slowed by 10 % is found",
            f"bench ab --a {floor} --b {slowed} --expect-log {said} --no-pre-block "
            f"--margin 3% --out {out / 'ab'} {load}",
            1,
        ),
        step(
            "logits",
            "the plugin's next-token distributions are those of stock vLLM",
            f"{logits} --b plugin:{ENGINE} --out {out / 'logits'}",
            0,
        ),
        step(
            "logits-broken",
            "an attention kernel that is 1 % wrong is found",
            f"{logits} --b broken:{BROKEN} --out {out / 'logits-broken'}",
            1,
        ),
        step(
            "tasks",
            "the plugin answers as stock vLLM does",
            f"{tasks} --b plugin:{ENGINE} --out {out / 'tasks'}",
            0,
        ),
        step(
            "tasks-broken",
            "an attention kernel that leaves out 1 % of its rows is found by its answers",
            f"{tasks} --b broken:{LAME} --out {out / 'tasks-broken'}",
            1,
        ),
        step("report", "one page on all of it", f"report {out} --out {out / 'report'}", 0),
    ]


def environment() -> dict[str, str]:
    """Of all commands: quiet, caches of the checkout, one thread for each server.

    VLLM_* variables of the caller are not passed on, so that the demo means the same everywhere.
    """
    callers = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("VLLM_") or name == "VLLM_AMDOPT_LOCK_DIR"
    }
    return {
        **callers,
        **QUIET_ENVIRONMENT,
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(CACHES),
        "VLLM_CACHE_ROOT": str(CACHES / "vllm"),
        "TRITON_CACHE_DIR": str(CACHES / "triton"),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Half of two cores is the load generator's, or it would be measured.
        "OMP_NUM_THREADS": "1",
    }


def run(step: Step) -> tuple[int, float]:
    """Exit code and seconds; what the command says goes to the screen."""
    command = [sys.executable, "-m", "vllm_amdopt.cli", *step.command]
    print(f"\n== {step.name}: {step.shows}\n$ {shlex.join(['vllm-amdopt', *step.command])}")
    sys.stdout.flush()
    begin = time.monotonic()
    code = subprocess.run(command, env=environment(), cwd=ROOT).returncode
    return code, time.monotonic() - begin


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.bench_demo")
    parser.add_argument("--out", type=Path, default=CACHES / "bench-demo")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="steps to run")
    parser.add_argument("--keep", action="store_true", help="go on in --out instead of anew")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    chosen = [
        step for step in steps(out, options.blocks) if not options.only or step.name in options.only
    ]
    if not options.keep:
        shutil.rmtree(out, ignore_errors=True)
    write_task_files(questions(out), QUESTIONS)
    lines, wrong = [], 0
    for step in chosen:
        if step.command[0] == "accuracy":  # it goes on with nothing
            shutil.rmtree(out / step.name, ignore_errors=True)
        code, seconds = run(step)
        good = code == step.expected
        wrong += not good
        verdict = "as it should be" if good else f"WRONG, expected {step.expected}"
        lines.append(f"{step.name:14s} exit code {code}: {verdict} ({seconds:.0f} s)")
        if code == 130:
            break
    print("\n" + "\n".join(lines))
    print(f"Everything is in {out}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
