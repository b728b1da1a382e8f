"""Make the plan for a server, log it once, and write its settings into vLLM's configuration.

Runs in `Platform.apply_config_platform_defaults`: in the main process first, then again in the
engine process, where the plan is found in the configuration and only applied.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from vllm_amdopt import __version__
from vllm_amdopt.integration import active_plan, faults
from vllm_amdopt.integration.facts_from_vllm import situation
from vllm_amdopt.integration.plugin import environment, is_main_process

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from vllm_amdopt.policy.plan import Decision, Plan

logger = init_logger("vllm.amdopt")


def prepare(vllm_config: VllmConfig, platform: str) -> None:
    """Find or make the plan of this configuration and apply its settings. Idempotent."""
    if vllm_config.model_config is None:
        return
    plan = active_plan.load(vllm_config)
    if plan is None:
        from vllm_amdopt.policy.plan import make_plan

        plan = make_plan(situation(vllm_config, platform))
        active_plan.store(vllm_config, plan)
        if is_main_process():
            _log(plan)
    for decision in plan.decisions:
        if decision.on:
            _apply(decision, vllm_config)


def _log(plan: Plan) -> None:
    from vllm_amdopt.policy.render import render_plan_table

    where = plan.engine or plan.gfx or plan.hardware
    logger.info("vllm-amdopt %s active on %s (%s)", __version__, plan.hardware, where)
    for sentence in plan.warnings:
        logger.warning("vllm-amdopt: %s", sentence)
    logger.info("vllm-amdopt plan:\n%s", render_plan_table(plan, warnings=False))
    if plan.warnings and faults.strict():
        raise faults.FeatureError(f"vllm-amdopt: {plan.warnings[0]} (VLLM_AMDOPT_STRICT=1)")


def _apply(decision: Decision, vllm_config: VllmConfig) -> None:
    """Write one decision's settings. `block_size` is applied where vLLM settles it, later."""
    for key, value in decision.settings.items():
        if key.startswith("env."):
            _set_environment(key.removeprefix("env."), str(value))
        elif key == "kv_offloading_size":
            vllm_config.cache_config.kv_offloading_size = float(value)
        elif key == "attention_backend":
            from vllm.v1.attention.backends.registry import AttentionBackendEnum

            vllm_config.attention_config.backend = AttentionBackendEnum[str(value)]


def _set_environment(name: str, value: str) -> None:
    """Set a variable for this process and its children, and let vLLM's AITER snapshot see it.

    Only variables that this vLLM knows: it warns of others, or refuses them if asked to.
    """
    import vllm.envs

    if environment().get(name) == value or name not in vllm.envs.environment_variables:
        return
    environment()[name] = value
    aiter = sys.modules.get("vllm._aiter_ops")
    if aiter is not None:
        aiter.rocm_aiter_ops.refresh_env_variables()
