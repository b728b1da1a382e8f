"""The order in which vLLM tries its attention backends, where the plan has one."""

from __future__ import annotations

from typing import Any

from vllm_amdopt.integration import active_plan


def in_plan_order(valid: list[tuple[Any, int]]) -> list[tuple[Any, int]]:
    """`valid` as (backend, priority), renumbered: the plan's named ones first, the rest as is."""
    plan = active_plan.current()
    order = None if plan is None else plan.settings.get("attention_order")
    if order is None:
        return valid
    names = str(order).split(",")
    ranked = sorted(
        valid,
        key=lambda entry: (
            names.index(entry[0].name) if entry[0].name in names else len(names),
            entry[1],
        ),
    )
    return [(backend, priority) for priority, (backend, _) in enumerate(ranked)]
