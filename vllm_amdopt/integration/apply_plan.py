"""Make the plan for a server, log it once, and write its settings into vLLM's configuration.

Runs in `Platform.apply_config_platform_defaults`: in the main process first, then again in the
engine process, where the plan is found in the configuration and only applied.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from vllm_amdopt import __version__
from vllm_amdopt.integration import active_plan, faults
from vllm_amdopt.integration.facts_from_vllm import situation
from vllm_amdopt.integration.plugin import (
    environment,
    is_main_process,
    is_vllm_command,
    remember_ours,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from vllm_amdopt.policy.plan import Plan
    from vllm_amdopt.policy.situation import SettingValue

logger = init_logger("vllm.amdopt")

DEFAULT = "default"  # policy.rule.DEFAULT, not imported: workers need none of the rules
LATER = ("attention_order",)
"""Settings that are read from the plan where vLLM asks, not written into its configuration."""


def prepare(vllm_config: VllmConfig, platform: str) -> None:
    """Find or make the plan of this configuration and apply its settings. Idempotent.

    Raises PlanRefusedError, or ends the program of `vllm serve`, where a guard found what cannot
    run.
    """
    if vllm_config.model_config is None:
        return
    plan = active_plan.load(vllm_config)
    if plan is None:
        from vllm_amdopt.policy.plan import make_plan

        plan = make_plan(situation(vllm_config, platform))
        active_plan.store(vllm_config, plan)
        if is_main_process():
            _log(plan)
    if plan.refusals:
        _refuse(plan)
    for key, value in plan.settings.items():
        _apply(key, value, vllm_config)


def _log(plan: Plan) -> None:
    from vllm_amdopt.policy.render import render_plan_table

    where = plan.engine or plan.gfx or plan.hardware
    logger.info("vllm-amdopt %s active on %s (%s)", __version__, plan.hardware, where)
    for sentence in plan.warnings:
        logger.warning("vllm-amdopt: %s", sentence)
    logger.info("vllm-amdopt plan:\n%s", render_plan_table(plan, warnings=False))
    logger.info("%s", plan.summary())
    if plan.warnings and faults.strict():
        raise faults.FeatureError(f"vllm-amdopt: {plan.warnings[0]} (VLLM_AMDOPT_STRICT=1)")


def _refuse(plan: Plan) -> None:
    text = f"vllm-amdopt: {'; '.join(plan.refusals)}"
    if is_main_process() and is_vllm_command(sys.argv[0]):
        sys.exit(text)  # a sentence for the user of a command, not a traceback
    raise faults.PlanRefusedError(text)


def _apply(key: str, value: SettingValue, vllm_config: VllmConfig) -> None:
    """Write one setting. Where this vLLM has no place for it: one warning, the rest goes on."""
    if key.startswith("env."):
        _set_environment(key.removeprefix("env."), str(value))
        return
    if key in LATER:
        return
    try:
        _WRITERS[key](vllm_config, value)
    except (AttributeError, KeyError) as error:
        logger.warning(
            "vllm-amdopt: %s=%s is not applied, this vLLM has no place for it (%s)",
            key,
            value,
            error,
        )


def _block_size(vllm_config: VllmConfig, value: SettingValue) -> None:
    """Only take the user's size back here; a size is settled later, by the backends selected."""
    cache = vllm_config.cache_config
    if value == DEFAULT and cache.user_specified_block_size:
        cache.block_size = type(cache).DEFAULT_BLOCK_SIZE
        cache.user_specified_block_size = False


def _kv_offloading_size(vllm_config: VllmConfig, value: SettingValue) -> None:
    vllm_config.cache_config.kv_offloading_size = float(value)


def _share_replicated_region(vllm_config: VllmConfig, value: SettingValue) -> None:
    """A key that patch 0005 adds; vLLM puts the connector and the size beside it later."""
    from vllm.config import KVTransferConfig

    if vllm_config.kv_transfer_config is None:
        vllm_config.kv_transfer_config = KVTransferConfig()
    extra = vllm_config.kv_transfer_config.kv_connector_extra_config
    extra.setdefault("share_replicated_region", bool(value))


def _moe_backend(vllm_config: VllmConfig, value: SettingValue) -> None:
    vllm_config.kernel_config.moe_backend = "auto" if value == DEFAULT else str(value)


def _fuse_allreduce_rms(vllm_config: VllmConfig, value: SettingValue) -> None:
    vllm_config.compilation_config.pass_config.fuse_allreduce_rms = bool(value)


def _fuse_rope_kvcache(vllm_config: VllmConfig, value: SettingValue) -> None:
    """With the operation that the pass looks for; vLLM has looked at the user's wish before."""
    compilation = vllm_config.compilation_config
    compilation.pass_config.fuse_rope_kvcache = bool(value)
    if not any(op.endswith("rotary_embedding") for op in compilation.custom_ops):
        compilation.custom_ops.append("+rotary_embedding")


def _fuse_qk_norm_rope_kvcache(vllm_config: VllmConfig, value: SettingValue) -> None:
    vllm_config.compilation_config.pass_config.fuse_qk_norm_rope_kvcache = bool(value)


def _use_inductor_graph_partition(vllm_config: VllmConfig, value: SettingValue) -> None:
    """Where the user said otherwise, vLLM says itself that the fusions need it."""
    compilation = vllm_config.compilation_config
    if compilation.use_inductor_graph_partition is None:
        compilation.use_inductor_graph_partition = bool(value)


def _mm_encoder_tp_mode(vllm_config: VllmConfig, value: SettingValue) -> None:
    multimodal: Any = vllm_config.model_config.multimodal_config
    if multimodal is not None:
        multimodal.mm_encoder_tp_mode = value


_WRITERS: Mapping[str, Callable[[VllmConfig, SettingValue], None]] = {
    "block_size": _block_size,
    "kv_offloading_size": _kv_offloading_size,
    "share_replicated_region": _share_replicated_region,
    "moe_backend": _moe_backend,
    "fuse_allreduce_rms": _fuse_allreduce_rms,
    "fuse_rope_kvcache": _fuse_rope_kvcache,
    "fuse_qk_norm_rope_kvcache": _fuse_qk_norm_rope_kvcache,
    "use_inductor_graph_partition": _use_inductor_graph_partition,
    "mm_encoder_tp_mode": _mm_encoder_tp_mode,
}

SETTINGS = frozenset((*_WRITERS, *LATER))
"""Every setting that a rule may have besides `env.NAME`."""


def _set_environment(name: str, value: str) -> None:
    """Set a variable for this process and its children, and let vLLM's AITER snapshot see it.

    Of vLLM's own variables only those that this vLLM knows: it warns of others, or refuses them if
    asked to.
    """
    import vllm.envs

    if environment().get(name) == value:
        return
    if name.startswith("VLLM_") and name not in vllm.envs.environment_variables:
        return
    environment()[name] = value
    remember_ours(name, value)
    if not name.startswith("VLLM_"):
        # Ray copies VLLM_* to its workers by itself, anything else only by this list.
        from vllm.platforms import current_platform

        names = current_platform.additional_env_vars
        current_platform.additional_env_vars = [*names, *({name} - set(names))]
    aiter = sys.modules.get("vllm._aiter_ops")
    if aiter is not None:
        aiter.rocm_aiter_ops.refresh_env_variables()
