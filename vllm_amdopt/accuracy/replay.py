"""Runs `replay_program` for one arm in a process of its own and reads what it measured.

It judges nothing. Whatever goes wrong in an arm becomes a ReplayFailedError with one sentence, and
no process of it is left, on Ctrl-C neither.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_amdopt.accuracy.divergence import Position
from vllm_amdopt.bench.processes import end_session, prepare_child
from vllm_amdopt.bench.server import cause
from vllm_amdopt.bench.treatment import Treatment, read_treatment

ENGINE_ENVIRONMENT: Mapping[str, str] = {
    # The engine in the program's own process: requests join at known steps, so that every arm
    # computes the same batches.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "PYTHONUNBUFFERED": "1",
}


class ReplayFailedError(RuntimeError):
    """The arm could not be measured; one sentence."""


@dataclass(frozen=True)
class Question:
    """What every arm is asked. `prompts` are texts; only the first arm needs them."""

    model: str
    cells: tuple[str, ...]
    tokens: int
    top: int
    prompts: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Replay:
    """What one launch of an arm gave: facts of its engine, and for each cell its distributions.

    `doubled`: the same with every request twice in the batch, empty unless asked for.
    `reference`: prompts and tokens of each cell as the program takes them. `unsupported`: a
    sentence for each cell that the engine refused. `treatment`: what the plugin said. `wrong`: the
    warning that answers are wrong on purpose, or empty.
    """

    engine: Mapping[str, Any]
    cells: Mapping[str, list[list[Position]]]
    doubled: Mapping[str, list[list[Position]]]
    reference: Mapping[str, Any]
    unsupported: Mapping[str, str]
    treatment: Treatment
    wrong: str


def replay(
    question: Question,
    *,
    environment: Mapping[str, str],
    serve_args: Sequence[str],
    folder: Path,
    reference: Mapping[str, Any] | None,
    doubled: bool = False,
) -> Replay:
    """Measure one launch of an arm; without a reference, tokens that it draws become it."""
    folder.mkdir(parents=True, exist_ok=True)
    out, log = folder / "measured.jsonl", folder / "engine.log"
    given = None
    if reference is not None:
        given = folder / "reference.json"
        given.write_text(json.dumps(reference))
    job = {
        "model": question.model,
        "serve_args": list(serve_args),
        "cells": list(question.cells),
        "tokens": question.tokens,
        "top": question.top,
        "prompts": list(question.prompts) if reference is None else [],
        "reference": None if given is None else str(given),
        "doubled": doubled,
        "out": str(out),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    out.write_text("")
    _run(path, log, {**environment, **ENGINE_ENVIRONMENT}, question.seconds)
    return read_replay(out, log, reference)


def _run(job: Path, log: Path, environment: Mapping[str, str], seconds: float) -> None:
    """Returns when the program has ended, however; raises where it had to be ended."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm_amdopt.accuracy.replay_program", str(job)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=prepare_child,
        )
    begin = time.monotonic()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise ReplayFailedError(
            f"the engine was not done within {time.monotonic() - begin:.0f} s: ask for fewer "
            f"cells or tokens, or give it more with --arm-timeout; its log is {log}"
        ) from None
    finally:
        end_session(process.pid)
        process.wait()


def read_replay(out: Path, log: Path, reference: Mapping[str, Any] | None) -> Replay:
    """The program's events; ReplayFailedError where they do not end in `done`."""
    events: list[dict[str, Any]] = []
    for line in out.read_text().splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            break  # the program was killed in the middle of a line
    text = log.read_text(errors="replace")
    kinds = [event["event"] for event in events]
    if "error" in kinds:
        sentence = events[kinds.index("error")]["sentence"]
        raise ReplayFailedError(f"{' '.join(sentence.split())[:600]} (log: {log})")
    if "done" not in kinds:
        raise ReplayFailedError(f"the engine's process ended early: {cause(text)} (log: {log})")
    recorded = {e["cell"]: e["sequences"] for e in events if e["event"] == "recorded"}
    return Replay(
        engine={k: v for k, v in events[kinds.index("engine")].items() if k != "event"},
        cells=_measured(events, "replayed"),
        doubled=_measured(events, "doubled"),
        reference=recorded if reference is None else reference,
        unsupported={e["cell"]: e["sentence"] for e in events if e["event"] == "unsupported"},
        treatment=read_treatment(text),
        wrong=wrong_on_purpose(text),
    )


def _measured(events: Sequence[Mapping[str, Any]], kind: str) -> dict[str, list[list[Position]]]:
    return {
        event["cell"]: [_positions(sequence) for sequence in event["sequences"]]
        for event in events
        if event["event"] == kind
    }


def _positions(sequence: Mapping[str, Any]) -> list[Position]:
    return [
        Position(float(one["chosen"]), {int(token): float(value) for token, value in one["top"]})
        for one in sequence["positions"]
    ]


def wrong_on_purpose(log: str) -> str:
    """The warning of an injected fault that makes answers wrong, without what precedes it."""
    mark = "VLLM_AMDOPT_INJECT_FAULT="
    found = (line for line in log.splitlines() if mark in line and "WRONG on purpose" in line)
    return next((mark + line.partition(mark)[2] for line in found), "")
