"""What happens when something of ours fails: one warning and stock vLLM, or an error when strict.

Every hook that vLLM calls runs its work through `attempt`. `VLLM_AMDOPT_INJECT_FAULT=<hook>` makes
one of them fail on purpose: the tests use it, and so can anyone who wants to see that a failure
inside the plugin does not take a server down. `VLLM_AMDOPT_INJECT_FAULT=<hook>:scale=1.01` and
`<hook>:zero=0.01` make the answers of a hook wrong instead, without an exception: what a broken
kernel does that nobody notices, so that the accuracy checks can show that they would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

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

DISTORTED_HOOKS = ("attention_forward", "mla_forward", "gemm_forward")
"""The hooks whose result can be made wrong on purpose."""


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
    asked = environment().get("VLLM_AMDOPT_INJECT_FAULT", "").strip()
    if asked == hook:
        raise InjectedFaultError(f"VLLM_AMDOPT_INJECT_FAULT={hook}")
    if hook == "plan":
        read_fault(asked)


def read_fault(text: str) -> tuple[str, str, float] | None:
    """(hook, "scale" or "zero", number) that a value asks for; None where it distorts nothing.

    ValueError with a sentence for a hook, a kind or a number that does not exist: a fault that
    was asked for and is silently missing would let a check of the checks pass.
    """
    hook, colon, distortion = (part.strip() for part in text.partition(":"))
    if not text or (hook in HOOKS and not colon):
        return None
    if not colon:
        raise ValueError(f"VLLM_AMDOPT_INJECT_FAULT={text}: the hooks are {', '.join(HOOKS)}")
    kind, _, number = (part.strip() for part in distortion.partition("="))
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    valid = {"scale": 0.0 < value < 100.0, "zero": 0.0 < value <= 1.0}
    if hook not in DISTORTED_HOOKS or not valid.get(kind, False):
        raise ValueError(
            f"VLLM_AMDOPT_INJECT_FAULT={text}: write HOOK:scale=FACTOR or HOOK:zero=SHARE of the "
            f"rows, with HOOK one of {', '.join(DISTORTED_HOOKS)}"
        )
    return hook, kind, value


@cache
def distortion(hook: str) -> Callable[[Any], None] | None:
    """What makes a result of `hook`, a tensor of rows, wrong in place; None in every real use.

    `scale` multiplies every value; `zero` leaves out every (1 / share)-th row, counted over calls.
    """
    from vllm.logger import init_logger

    fault = read_fault(environment().get("VLLM_AMDOPT_INJECT_FAULT", "").strip())
    if fault is None or fault[0] != hook:
        return None
    _, kind, value = fault
    init_logger("vllm.amdopt").warning(
        "VLLM_AMDOPT_INJECT_FAULT=%s:%s=%g: the answers of this process are WRONG on purpose; "
        "unset the variable",
        hook,
        kind,
        value,
    )
    if kind == "scale":
        return lambda result: result.mul_(value)
    period = max(1, round(1.0 / value))
    seen = 0

    def leave_rows_out(result: Any) -> None:
        nonlocal seen
        result[(-seen) % period :: period] = 0
        seen += len(result)

    return leave_rows_out


def strict() -> bool:
    """Whether failures are errors: VLLM_AMDOPT_STRICT."""
    return environment().get("VLLM_AMDOPT_STRICT", "0").strip().lower() in (
        "1",
        "on",
        "true",
        "yes",
    )
