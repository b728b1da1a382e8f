"""Makes the run records of the two accuracy checks, for the report; it judges nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_amdopt.accuracy import logits, tasks
from vllm_amdopt.accuracy.logits_judgement import Summary
from vllm_amdopt.accuracy.replay import Replay
from vllm_amdopt.accuracy.task_judgement import Comparison
from vllm_amdopt.accuracy.thresholds import FLOOR_FACTOR, LOG_LIKELIHOOD_MARGIN
from vllm_amdopt.bench.treatment import Treatment
from vllm_amdopt.run_record import Arm, Conclusion, Row, RunRecord, Table, new_record


def logits_record(
    result: logits.LogitsResult,
    *,
    machine: Mapping[str, Any],
    software: Mapping[str, Any],
    commands: Sequence[str],
) -> RunRecord:
    """The record of `accuracy logits`."""
    settings, first = result.settings, result.settings.arms[0]
    named = [(f"{first.name} {how}", floor) for how, floor in result.floor.items()]
    arms = [_arm(first, settings.serve_args, _treatment(result.first))]
    arms += [_arm(first, settings.serve_args, None, name) for name, _ in named]
    rows = [
        *_first_rows(result),
        *(_logits_row(name, cell, one) for name, floor in named for cell, one in floor.items()),
    ]
    for other in result.others:
        arms.append(_arm(other.arm, settings.serve_args, _treatment(other.replay)))
        rows += [_logits_row(other.arm.name, cell, one) for cell, one in other.compared.items()]
        if other.invalid:
            rows.append(_invalid_row(other.arm.name, "cell", other.invalid))
    engine = {} if result.first is None else dict(result.first.engine)
    limits = result.limits
    return new_record(
        "accuracy_logits",
        arms,
        rows=tuple(rows),
        title=_title(settings.model, "logits"),
        machine=dict(machine),
        software=dict(software),
        workload={
            "model": settings.model,
            "cells": [cell.name for cell in settings.cells],
            "tokens": settings.tokens,
            "top": settings.top,
            "engine": engine,
            "limits": {
                "mean_kl": limits.mean_kl,
                "p99_kl": limits.tail_kl,
                "tie": limits.tie,
                "floor_factor": FLOOR_FACTOR,
                "log_likelihood": LOG_LIKELIHOOD_MARGIN,
            },
        },
        commands=tuple(commands),
        notes=(
            f"KL is a lower bound from the {settings.top} most probable tokens of either arm.",
            f"Limits of {result.dtype}: {limits.reason}.",
        ),
        tables=(
            Table(
                "Next-token distributions against the first arm",
                logits.HEAD,
                tuple(logits.table(result)),
                "nats; the rows of the first arm are what it differs from itself by",
            ),
        ),
        conclusion=_conclusion(result.exit_code(True), logits.conclusions(result)),
    )


def tasks_record(
    result: tasks.TasksResult,
    *,
    machine: Mapping[str, Any],
    software: Mapping[str, Any],
    commands: Sequence[str],
) -> RunRecord:
    """The record of `accuracy tasks`."""
    settings, first = result.settings, result.settings.arms[0]
    again = f"{first.name} again"
    arms = [
        _arm(first, settings.serve_args, None),
        _arm(first, settings.serve_args, None, again),
    ]
    rows = [
        Row(
            0, first.name, {"task": task}, "ok",
            metrics={"items": one.flips.items, "right": one.flips.first_share},
        )
        for task, one in result.floor.items()
    ]  # fmt: skip
    rows += [_task_row(again, task, one) for task, one in result.floor.items()]
    if result.invalid and not rows:
        rows.append(_invalid_row(first.name, "task", result.invalid))
    for other in result.others:
        arms.append(_arm(other.arm, settings.serve_args, other.treatment))
        rows += [_task_row(other.arm.name, task, one) for task, one in other.compared.items()]
        if other.invalid:
            rows.append(_invalid_row(other.arm.name, "task", other.invalid))
    return new_record(
        "accuracy_tasks",
        arms,
        rows=tuple(rows),
        title=_title(settings.model, "tasks"),
        machine=dict(machine),
        software=dict(software),
        workload={
            "model": settings.model,
            "tasks": {task.name: len(task.items) for task in settings.tasks},
            "concurrency": settings.evaluation.concurrency,
            "margin": settings.margin,
        },
        commands=tuple(commands),
        tables=(
            Table(
                "Answers to the same questions, compared item by item",
                tasks.HEAD,
                tuple(tasks.table(result)),
                "difference in points, Tango's interval for pairs; p: exact McNemar, adjusted by "
                "Holm over the tasks",
            ),
        ),
        conclusion=_conclusion(result.exit_code(True), tasks.conclusions(result)),
    )


def _title(model: str, what: str) -> str:
    return f"{model.rstrip('/').rpartition('/')[2]}: accuracy of {what}"


def _treatment(done: Replay | None) -> Treatment | None:
    return None if done is None else done.treatment


def _arm(
    arm: Any, serve_args: Sequence[str], treatment: Treatment | None, name: str | None = None
) -> Arm:
    plan = None if treatment is None else treatment.record()
    return Arm(
        name or arm.name,
        arm.environment,
        (*serve_args, *arm.serve_arguments),
        plan,
        () if plan is None else (f"features on: {', '.join(plan['features']) or 'none'}",),
    )


def _first_rows(result: logits.LogitsResult) -> list[Row]:
    name = result.settings.arms[0].name
    if result.first is None or result.invalid:
        return [_invalid_row(name, "cell", result.invalid)]
    rows = []
    for cell, sequences in result.first.cells.items():
        chosen = [position.chosen for sequence in sequences for position in sequence]
        rows.append(
            Row(
                0, name, {"cell": cell}, "ok",
                metrics={
                    "positions": len(chosen),
                    "log_likelihood": math.fsum(chosen) / len(chosen),
                },
            )
        )  # fmt: skip
    rows += [
        Row(0, name, {"cell": cell}, "unsupported", reason=why)
        for cell, why in result.first.unsupported.items()
    ]
    return rows


def _logits_row(arm: str, cell: str, one: Summary) -> Row:
    metrics = {
        "positions": float(one.positions),
        "kl_mean": one.kl_mean,
        "kl_p99": one.kl_tail,
        "kl_max": one.kl_largest,
        "top1_agreement": one.agreement,
        "top1_agreement_error": one.agreement_error,
        "disputed": float(one.disputed),
        "log_likelihood_difference": one.log_likelihood,
    }
    if one.log_likelihood_interval is not None:
        metrics["log_likelihood_difference_low"] = one.log_likelihood_interval.low
        metrics["log_likelihood_difference_high"] = one.log_likelihood_interval.high
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    if len(finite) < len(metrics):
        reason = "an arm gave log-probabilities that are no numbers"
        return Row(0, arm, {"cell": cell}, "error", reason=reason, metrics=finite)
    return Row(0, arm, {"cell": cell}, "ok", metrics=finite)


def _task_row(arm: str, task: str, one: Comparison) -> Row:
    return Row(
        0, arm, {"task": task}, "ok",
        metrics={
            "items": one.flips.items,
            "right": one.flips.second_share,
            "lost": one.flips.only_first,
            "won": one.flips.only_second,
            "difference": one.difference.estimate,
            "difference_low": one.difference.low,
            "difference_high": one.difference.high,
            "p_worse": one.p_worse,
            "p_two_sided": one.p_two_sided,
        },
    )  # fmt: skip


def _invalid_row(arm: str, what: str, reason: str) -> Row:
    return Row(0, arm, {what: "all"}, "error", reason=reason)


_OUTCOMES = {0: "passed", 1: "failed"}


def _conclusion(exit_code: int, sentences: Sequence[str]) -> Conclusion:
    return Conclusion(_OUTCOMES.get(exit_code, "inconclusive"), "; ".join(sentences))
