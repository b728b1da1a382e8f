"""Makes the run record of a serving comparison from what a run left behind; it judges nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_amdopt.bench.client_ceiling import Ceiling, ceiling_near
from vllm_amdopt.bench.gates import ceiling_warning
from vllm_amdopt.bench.plan import Level, Plan
from vllm_amdopt.bench.runner import Outcome
from vllm_amdopt.run_record import Arm, Judgement, Row, RunRecord, Table, new_record


def serving_record(
    plan: Plan,
    outcome: Outcome,
    *,
    machine: Mapping[str, Any],
    software: Mapping[str, Any],
    model: Mapping[str, Any],
    commands: Sequence[str],
    notes: Sequence[str] = (),
    ceilings: Sequence[Ceiling] = (),
) -> RunRecord:
    """The record; `model` is what is known of it, such as its active parameters."""
    return new_record(
        plan.kind,
        [
            Arm(
                arm.name,
                arm.environment,
                (*plan.serve_arguments, *arm.serve_arguments),
                outcome.plans.get(arm.name),
                evidence(arm.name, outcome),
            )
            for arm in plan.arms
        ],
        rows=tuple(_row(row) for row in outcome.rows),
        title=f"{plan.model.rstrip('/').rpartition('/')[2]}: "
        + " against ".join(arm.name for arm in reversed(plan.arms[:2])),
        machine=dict(machine),
        software=dict(software),
        workload={
            "model": plan.model,
            **model,
            "loads": [f"{level.label}, {level.prompts} requests" for level in plan.levels],
            "blocks_planned": plan.blocks,
            "blocks_done": outcome.blocks_done,
            "repetitions": plan.repetitions,
            "seed": plan.seed,
            "pre_block": plan.pre_block,
            "preset": plan.preset,
            "plan_digest": plan.digest,
        },
        tables=(launches_table(outcome),),
        judgement=Judgement(
            primary=plan.primary, gated=plan.gated, margin=plan.margin, slo=dict(plan.slo)
        ),
        commands=tuple(commands),
        notes=(*notes, *run_notes(plan, outcome, ceilings)),
    )


def launches_table(outcome: Outcome) -> Table:
    """Every launch of the run, also those that did not count, in the order of time."""

    def shown(launch: Mapping[str, Any], name: str, form: str) -> str:
        value = launch.get(name)
        return "" if value is None else format(value, form)

    return Table(
        title="Launches",
        head=("block", "arm", "ready after (s)", "weights (GiB)", "KV cache (tokens)", "came to"),
        rows=tuple(
            (
                "before the first" if launch["block"] < 0 else str(launch["block"] + 1),
                launch["arm"] + (", again" if launch["attempt"] else ""),
                shown(launch, "seconds_to_ready", ".1f"),
                shown(launch, "weights_gib", ".2f"),
                shown(launch, "kv_cache_tokens", ",.0f"),
                launch.get("failure") or "measured",
            )
            for launch in outcome.launches
        ),
        note="The log of each launch lies beside its results.",
    )


def _row(row: Mapping[str, Any]) -> Row:
    details = {"text_digest": row["text_digest"]} if "text_digest" in row else {}
    return Row(
        block=max(0, row["block"]),  # what failed in the launch before the first block
        arm=row["arm"],
        level=row["level"],
        status=row["status"],
        order=row["order"],
        position=row["position"],
        repetition=row["repetition"],
        reason=row["reason"] or "",
        metrics={key: value for key, value in row["metrics"].items() if math.isfinite(value)},
        details=details,
    )


def evidence(arm: str, outcome: Outcome) -> tuple[str, ...]:
    """Sentences on what was active in an arm, from all of its launches."""
    said: dict[str, None] = {}
    for launch in outcome.launches:
        if launch["arm"] != arm or launch.get("failure") is not None:
            continue
        plan = launch["plan"]
        if plan is None:
            said.setdefault("its log has no word of the plugin")
        else:
            on = [*plan["features"], *plan["rules"]]
            said.setdefault(f"plan {plan['digest']} in its log: {', '.join(on) or 'nothing'} on")
    return tuple(said)


def run_notes(plan: Plan, outcome: Outcome, ceilings: Sequence[Ceiling]) -> list[str]:
    """What a reader has to know beside the numbers."""
    notes = []
    if outcome.stopped is not None:
        notes.append(f"Stopped early: {outcome.stopped}.")
    for what in outcome.discarded:
        notes.append(
            f"Block {what['block'] + 1} was measured again: its attempt {what['attempt'] + 1} did "
            f"not count, {what['reason']}."
        )
    if any(level.dataset == "random" for level in plan.levels):
        notes.append("The prompts are random tokens: no answer is a real one.")
    if not ceilings:
        notes.append(
            "The load generator's own ceiling on this machine is not known: "
            "`vllm-amdopt bench calibrate-client` measures it."
        )
    for level in plan.levels:
        notes += _ceiling_note(level, outcome, ceilings)
    return notes


def _ceiling_note(level: Level, outcome: Outcome, ceilings: Sequence[Ceiling]) -> list[str]:
    ceiling = ceiling_near(ceilings, level.concurrency or 16)
    rates = [
        row["metrics"]["output_throughput"]
        for row in outcome.rows
        if row["level"] == level.record() and "output_throughput" in row["metrics"]
    ]
    if ceiling is None or not rates:
        return []
    limit, most = ceiling.output_tokens_per_second, max(rates)
    warning = ceiling_warning(most, limit)
    if warning:
        return [f"At {level.label}, {warning}."]
    return [
        f"At {level.label}, the load generator alone reaches {limit:.0f} output tok/s on this "
        f"machine, {limit / most:.1f} times the most that was measured."
    ]
