"""What happens when something of ours fails: one warning and stock vLLM, or an error when strict.

Every hook that vLLM calls runs its work through `attempt`. `VLLM_AMDOPT_INJECT_FAULT=<hook>` makes
one of them fail on purpose: the tests use it, and so can anyone who wants to see that a failure
inside the plugin does not take a server down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from vllm_amdopt.integration.plugin import environment

T = TypeVar("T")

HOOKS: Mapping[str, str] = {
    "plan": "plugin",
    "configuration": "plugin",
    "attention_backend": "attention",
    "mla_backend": "mla",
    "attention_self_test": "attention",
    "mla_self_test": "mla",
    "attention_forward": "attention",
    "mla_forward": "mla",
    "block_size": "mla_block_size",
    "attention_order": "attention_order",
    "gemm_dispatch": "gemm",
    "gemm_bind": "gemm",
    "gemm_forward": "gemm",
    "communicator_class": "all_reduce",
    "communicator": "all_reduce",
    "all_reduce": "all_reduce",
}
"""Hook -> the feature that is switched off when it fails; "plugin" is everything."""


class FeatureError(RuntimeError):
    """Under VLLM_AMDOPT_STRICT=1: something of ours failed; the message names feature and hook."""


class PlanRefusedError(ValueError):
    """A guard of the plan found what cannot run; the message says what to do."""


class InjectedFaultError(RuntimeError):
    """The failure that VLLM_AMDOPT_INJECT_FAULT asked for."""


_disabled: dict[str, str] = {}


def disabled(feature: str) -> str | None:
    """Why `feature` was switched off in this process, or None while it works."""
    return _disabled.get("plugin") or _disabled.get(feature)


def disable(feature: str, sentence: str) -> None:
    """Switch `feature` off in this process and say so once; raise FeatureError when strict."""
    from vllm.logger import init_logger

    if strict():
        raise FeatureError(f"vllm-amdopt: {feature}: {sentence} (VLLM_AMDOPT_STRICT=1)")
    if feature not in _disabled:
        _disabled[feature] = sentence
        init_logger("vllm.amdopt").warning(
            "vllm-amdopt: %s is switched off and vLLM goes on without it: %s", feature, sentence
        )


def attempt(hook: str, action: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """Return `action()`; where it raises, switch the hook's feature off and return `otherwise()`.

    A feature that was switched off is not tried again. Raises FeatureError instead under
    VLLM_AMDOPT_STRICT=1.
    """
    feature = HOOKS[hook]
    if disabled(feature) is not None:
        return otherwise()
    try:
        check_injected(hook)
        return action()
    except (FeatureError, PlanRefusedError):
        raise
    except Exception as error:
        disable(feature, f"{hook} failed with {type(error).__name__}: {error}")
    return otherwise()


def check_injected(hook: str) -> None:
    """Raise InjectedFaultError if the user asked this hook to fail."""
    if environment().get("VLLM_AMDOPT_INJECT_FAULT", "").strip() == hook:
        raise InjectedFaultError(f"VLLM_AMDOPT_INJECT_FAULT={hook}")


def strict() -> bool:
    """Whether failures are errors: VLLM_AMDOPT_STRICT."""
    return environment().get("VLLM_AMDOPT_STRICT", "0").strip().lower() in (
        "1",
        "on",
        "true",
        "yes",
    )
