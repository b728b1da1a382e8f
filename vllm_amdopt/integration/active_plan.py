"""The plan of this process: made once in the main process, carried in vLLM's configuration.

Workers read it from there and never recompute it, so that all ranks decide alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_amdopt.integration import faults

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from vllm_amdopt.policy.plan import Plan

CONFIG_KEY = "amdopt"
"""Where the plan lies in `additional_config`, which is part of vLLM's configuration hash."""

_plan: Plan | None = None


def store(vllm_config: VllmConfig, plan: Plan) -> None:
    """Put the plan into the configuration that vLLM ships to all processes, and into this one."""
    global _plan
    additional = vllm_config.additional_config
    if not isinstance(additional, dict):
        raise TypeError(
            "additional_config is not a dictionary, so the plan cannot be carried in it; "
            "pass --additional-config as a JSON object"
        )
    additional[CONFIG_KEY] = plan.to_dict()
    _plan = plan


def load(vllm_config: VllmConfig) -> Plan | None:
    """The plan that lies in this configuration, or None. Raises PlanError if it is broken."""
    global _plan
    from vllm_amdopt.policy.plan import Plan

    additional: Any = vllm_config.additional_config
    record = additional.get(CONFIG_KEY) if isinstance(additional, dict) else None
    if record is None:
        return None
    if _plan is None or _plan.to_dict() != record:
        _plan = Plan.from_dict(record)
    return _plan


def plan_of(vllm_config: VllmConfig) -> Plan | None:
    """As `load`, but a plan that cannot be read switches the plugin off, and None is returned."""
    from vllm_amdopt.policy.plan import PlanError

    if faults.disabled("plugin") is not None:
        return None
    try:
        return load(vllm_config)
    except PlanError as error:
        faults.disable("plugin", f"the plan in additional_config cannot be read: {error}")
        return None


def current() -> Plan | None:
    """The plan of the configuration that vLLM is building a model with, or of this process."""
    from vllm.config import get_current_vllm_config_or_none

    vllm_config = get_current_vllm_config_or_none()
    return _plan if vllm_config is None else plan_of(vllm_config)


def is_on(feature: str) -> bool:
    """Whether the plan has `feature` on and nothing of it failed in this process."""
    plan = current()
    return plan is not None and plan.is_on(feature) and faults.disabled(feature) is None
