"""Where our kernels run in this process: on the GPU, or on a CPU by one of four engines.

On a CPU, `VLLM_AMDOPT_CPU_ENGINE` chooses between emulated gfx942 or gfx950 machine code (a virtual
MI300X or MI355X), Triton's interpreter, and the plain PyTorch references.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch

from vllm_amdopt.integration.plugin import environment
from vllm_amdopt.kernels import availability
from vllm_amdopt.ops import refusals
from vllm_amdopt.ops.operation import REFERENCE, Operation

EMULATED = ("gfx942", "gfx950")


class EngineError(RuntimeError):
    """The chosen engine cannot run here; the message says what to do."""


@cache
def cpu_engine() -> str | None:
    """The engine in use on a CPU platform, None on a GPU. Fixed for the life of the process."""
    from vllm.platforms import current_platform

    from vllm_amdopt.policy.switches import read_switches

    if not current_platform.is_cpu():
        return None
    return read_switches(environment()).engine


@cache
def implementation() -> str:
    """What this process runs where an operation has one kernel: "triton", or "reference"."""
    return REFERENCE if cpu_engine() == "reference" else "triton"


@cache
def gfx() -> str | None:
    """The AMD GPU that this process runs kernels on, emulated ones included; None is another."""
    engine = cpu_engine()
    if engine is not None:
        return engine if engine in EMULATED else None
    return availability.current_gfx()


@cache
def chosen(operation: Operation, **facts: Any) -> str:
    """The first implementation of the operation that does not refuse these facts here.

    Facts: the keywords of `Implementation.refusal` but gfx. Decided once per layer shape. Where all
    refuse, it is `implementation()`, whose launch says why.
    """
    if implementation() == REFERENCE:
        return REFERENCE
    choice = operation.choose(**facts, gfx=gfx())
    return choice.implementation.name if choice.implementation else implementation()


@cache
def fp8_dtype() -> torch.dtype:
    """The e4m3 that the device converts in hardware: what a cache of `--kv-cache-dtype fp8` holds.

    An emulated GPU has its own; for the other CPU engines it is the OCP one.
    """
    from vllm.platforms import current_platform

    engine = cpu_engine()
    if engine is None:
        dtype: torch.dtype = current_platform.fp8_dtype()
        return dtype
    return refusals.fp8_of(engine) if engine in EMULATED else torch.float8_e4m3fn


@cache
def _device() -> AbstractContextManager[Any]:
    engine = cpu_engine()
    if engine is None or engine == "reference":
        return nullcontext()
    if engine == "interpreter":
        _check_interpreter()
        return nullcontext()
    record = environment().get("VLLM_AMDOPT_EMULATE_REPORT", "").strip()
    if record:
        from vllm_amdopt.emulator.recording import RecordingDevice

        return RecordingDevice(engine, target=record)
    from vllm_amdopt.emulator.launch import Device

    device: AbstractContextManager[Any] = Device(engine)
    return device


def kernel_device() -> AbstractContextManager[Any]:
    """A context in which launching one of our Triton kernels reaches the right machine."""
    return _device()


def _check_interpreter() -> None:
    """Triton decides while it is imported whether its own library functions can be interpreted."""
    import triton.language
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(triton.language.sum, InterpretedFunction):
        raise EngineError(
            "Triton was imported before the interpreter could be chosen; start the program with "
            "TRITON_INTERPRET=1 in the environment"
        )
