"""What the policy predicts that vLLM selects, beside what vLLM selects: one adapter to its API.

Runs in the process of a combination, after vLLM's configuration and before its model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any


@contextmanager
def remembered() -> Iterator[list[Any]]:
    """The situation that a plan is made from in here, if one is made: what follows changes it."""
    from vllm_amdopt.integration import apply_plan

    seen: list[Any] = []
    make = apply_plan.situation

    def situation(vllm_config: Any, platform: str) -> Any:
        seen.append(make(vllm_config, platform))
        return seen[-1]

    apply_plan.situation = situation
    try:
        yield seen
    finally:
        apply_plan.situation = make


def of(config: Any, seen: list[Any]) -> dict[str, Any]:
    """The prediction for a configuration: with its plan if it has one, else for vLLM alone."""
    from vllm_amdopt.integration import active_plan
    from vllm_amdopt.integration.facts_from_vllm import situation
    from vllm_amdopt.policy import moe_selection, selection

    plan = active_plan.load(config)
    if plan is None:
        facts = situation(config, "rocm")
        attention = selection.stock(facts)
    else:
        facts = replace(seen[0], values=dict(plan.settings))
        attention = selection.planned(facts, plan)
    experts = moe_selection.predict_now(facts)
    return {
        "attention": attention.name,
        "attention_raises": attention.raises,
        "attention_why": attention.why,
        "block_size": attention.block_size,
        "experts": experts.backend,
        "experts_raise": experts.raises,
    }
