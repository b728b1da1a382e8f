"""Checks of the environment: variables that are dead, misspelt, contradictory or dangerous."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module

from vllm_amdopt.commands.facts import Facts
from vllm_amdopt.commands.findings import Check, Finding, advice, fine, wrong
from vllm_amdopt.policy.switches import SwitchError, read_switches

_TRUE = ("1", "true", "yes", "on")

_QUICK_REDUCE = "VLLM_ROCM_QUICK_REDUCE_QUANTIZATION"
_QUICK_REDUCE_VALUES = ("NONE", "FP", "INT8", "INT6", "INT4", "INT3")  # vLLM 0.32 envs.py


def dead_variables() -> Mapping[str, str]:
    """Variables that older vLLMs read and the supported ones do not, each with what to do."""
    try:
        module = import_module("vllm_amdopt.policy.rules.variables")
    except ModuleNotFoundError:
        return {}
    dead: Mapping[str, str] = module.DEAD_VARIABLES
    return dead


def switches(facts: Facts) -> Finding:
    """The plugin's own variables; a misspelt one ends in stock vLLM."""
    try:
        read_switches(facts.environment)
    except SwitchError as error:
        return wrong(str(error), "correct it, or unset it")
    ours = sorted(name for name in facts.environment if name.startswith("VLLM_AMDOPT"))
    return fine(f"set and understood: {', '.join(ours)}" if ours else "no VLLM_AMDOPT variable set")


def injected_fault(facts: Facts) -> Finding:
    """The one variable that makes the plugin fail, or answer wrongly, on purpose."""
    fault = facts.environment.get("VLLM_AMDOPT_INJECT_FAULT", "").strip()
    if not fault:
        return fine("no fault is injected")
    what = "answers are wrong on purpose" if ":" in fault else "a part of the plugin fails"
    return wrong(
        f"VLLM_AMDOPT_INJECT_FAULT={fault} is set, which is for tests: {what}",
        "unset VLLM_AMDOPT_INJECT_FAULT",
    )


def vllm_variables(
    facts: Facts, dead: Callable[[], Mapping[str, str]] = dead_variables
) -> Finding | None:
    """VLLM_ variables that this vLLM does not read."""
    known = facts.installation.vllm_variables
    gone = dead()
    sentences = []
    for name in sorted(facts.environment):
        if name in gone:
            sentences.append(f"{name} has no effect any more: {gone[name]}")
        elif known is not None and _is_vllms(name) and name not in known:
            sentences.append(f"{name} is not a variable of this vLLM{_suggestion(name, known)}")
    if sentences:
        return advice("; ".join(sentences), "unset what has no effect, or correct its name")
    return fine("every VLLM_ variable is known") if known is not None else None


def _is_vllms(name: str) -> bool:
    return name.startswith("VLLM_") and not name.startswith("VLLM_AMDOPT")


def _suggestion(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.85)
    return f" (did you mean {near[0]}?)" if near else ""


def contradictions(facts: Facts) -> Finding:
    """The first contradiction, as it keeps the server from starting or from being right."""
    for finding in _contradictions(facts):
        return finding
    return fine("no variable contradicts another")


def _contradictions(facts: Facts) -> Iterator[Finding]:
    environment = facts.environment
    hip, cuda = (environment.get(f"{kind}_VISIBLE_DEVICES") for kind in ("HIP", "CUDA"))
    if hip and cuda and hip != cuda:  # vLLM 0.30 to 0.32, platforms/rocm.py
        yield wrong(
            f"HIP_VISIBLE_DEVICES={hip} and CUDA_VISIBLE_DEVICES={cuda} differ: vLLM does not "
            "start",
            "set one of them only",
        )
    if environment.get("HSA_OVERRIDE_GFX_VERSION") and facts.expects_amd:
        yield wrong(
            "HSA_OVERRIDE_GFX_VERSION makes the GPU pass for another one: kernels are compiled "
            "for the wrong machine",
            "unset HSA_OVERRIDE_GFX_VERSION",
        )
    if facts.expects_amd and environment.get("TRITON_INTERPRET", "").lower() in _TRUE:
        yield wrong(
            "TRITON_INTERPRET runs Triton's kernels in Python, on the CPU", "unset TRITON_INTERPRET"
        )
    if environment.get("VLLM_TARGET_DEVICE") not in (None, "", "rocm") and facts.expects_amd:
        yield wrong(
            f"VLLM_TARGET_DEVICE={environment['VLLM_TARGET_DEVICE']} keeps vLLM off the AMD GPU",
            "unset VLLM_TARGET_DEVICE",
        )
    codec = environment.get(_QUICK_REDUCE, "")
    if codec and codec.upper() not in _QUICK_REDUCE_VALUES:
        yield wrong(
            f"{_QUICK_REDUCE}={codec} is not one of {', '.join(_QUICK_REDUCE_VALUES)}",
            f"correct it, or unset {_QUICK_REDUCE}",
        )
    yield from _aiter_without_master(environment)
    if environment.get("ROCR_VISIBLE_DEVICES") and (hip or cuda):
        yield advice(
            "ROCR_VISIBLE_DEVICES renumbers the GPUs, and HIP_VISIBLE_DEVICES counts in the new "
            "numbers",
            "use HIP_VISIBLE_DEVICES alone",
        )


def _aiter_without_master(environment: Mapping[str, str]) -> Iterator[Finding]:
    master = environment.get("VLLM_ROCM_USE_AITER")
    if master is None or master.lower() in ("true", "1"):  # as vLLM reads it
        return
    parts = sorted(
        name
        for name, value in environment.items()
        if name.startswith("VLLM_ROCM_USE_AITER_") and value.lower() in ("true", "1")
    )
    if parts:
        yield advice(
            f"VLLM_ROCM_USE_AITER={master} switches AITER off, so {', '.join(parts)} has no effect",
            "set VLLM_ROCM_USE_AITER=1, or unset the others",
        )


CHECKS = (
    Check("switches", switches),
    Check("injected fault", injected_fault),
    Check("vllm variables", vllm_variables),
    Check("contradictions", contradictions),
)
