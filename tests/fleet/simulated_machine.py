"""Stand-ins for `amdsmi`, AITER and Triton: vLLM then takes this machine for an AMD one.

Not a test. vLLM resolves its ROCm platform and selects everything with its own code; no kernel runs
and no device is touched, so what this can show is selection and configuration, nothing more.
Nothing here imports vLLM before the stand-ins are in place.
"""

from __future__ import annotations

import enum
import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

GPUS = 8
AITER_VERSION = "0.1.21.post2"
TRITON_VERSION = "3.6.0"
HOST_MEMORY_BYTES = 2 << 40
"""2 TiB: what servers with eight of these GPUs are sold with; it must not be this machine's."""


@dataclass(frozen=True)
class Product:
    """What amdsmi says about one GPU of a kind."""

    gfx: str
    name: str
    device_id: str
    memory_bytes: int
    compute_units: int


PRODUCTS = {
    "gfx942": Product("gfx942", "AMD Instinct MI300X", "0x74a1", 192 << 30, 304),
    "gfx950": Product("gfx950", "AMD Instinct MI355X", "0x75a3", 288 << 30, 256),
}
"""Memory and compute units: https://rocm.docs.amd.com/en/latest/reference/gpu-specs.html"""


def stand_in(name: str, **attributes: Any) -> types.ModuleType:
    """A module in `sys.modules` with these attributes."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(attributes)
    sys.modules[name] = module
    return module


def pretend_amd_machine(gfx: str) -> None:
    """What vLLM asks amdsmi for, answered as on a machine with eight GPUs of this kind."""
    product = PRODUCTS[gfx]
    exception = type("AmdSmiException", (Exception,), {})
    stand_in(
        "amdsmi",
        AmdSmiException=exception,
        AmdSmiMemoryType=types.SimpleNamespace(VRAM=0),
        amdsmi_init=lambda *a: None,
        amdsmi_shut_down=lambda: None,
        amdsmi_get_processor_handles=lambda: list(range(GPUS)),
        amdsmi_get_gpu_asic_info=lambda handle: {
            "target_graphics_version": gfx,
            "device_id": product.device_id,
            "market_name": product.name,
        },
        amdsmi_get_gpu_device_uuid=lambda handle: f"uuid-{handle}",
        amdsmi_get_gpu_memory_total=lambda handle, kind: product.memory_bytes,
        amdsmi_topo_get_link_type=lambda a, b: {"hops": 1, "type": 2},
        amdsmi_topo_get_numa_node_number=lambda handle: 0,
    )


def without_compiled_kernels() -> None:
    """The CPU wheel's compiled modules may not run on this CPU, and none of them is called."""
    for name in ("_C", "_C_stable_libtorch", "_rocm_C", "_moe_C", "_moe_C_stable_libtorch"):
        stand_in(f"vllm.{name}")


def without_cpu_build() -> None:
    """vLLM takes "cpu" in its version for its CPU platform, which would then be active as well."""
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: version(name).partition("+")[0]


class _Anything(types.ModuleType):
    """A module that has every name: a class, a function or a submodule, whichever is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _Kernel(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class _Kernel:
    """A name of AITER's that is looked up and passed on, and cannot be called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        raise NotImplementedError(f"{self.name} is a stand-in and has no kernel")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Kernel(f"{self.name}.{name}")


class _AiterFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `aiter` and everything under it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] != "aiter":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        parent, _, name = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], name, module)
        _fill(module)


def _fill(module: types.ModuleType) -> None:
    """The few names that vLLM looks into, with the signatures of AITER_VERSION."""

    def mla_decode_fwd(q: object, causal: bool = True) -> None:
        raise NotImplementedError("a stand-in has no kernels")

    def fused_moe(
        hidden_states: object, quant_dtype_a: object = None, gate_mode: object = None
    ) -> None:
        raise NotImplementedError("a stand-in has no kernels")

    if module.__name__ == "aiter":
        module.ActivationType = enum.Enum(  # type: ignore[attr-defined]
            "ActivationType", "No Silu Gelu Swiglu"
        )
        module.QuantType = enum.Enum(  # type: ignore[attr-defined]
            "QuantType", "No per_Tensor per_Token per_1x32 per_1x128 per_128x128"
        )
    if module.__name__ == "aiter.mla":
        module.mla_decode_fwd = mla_decode_fwd  # type: ignore[attr-defined]
    if module.__name__ == "aiter.fused_moe":
        module.fused_moe = fused_moe  # type: ignore[attr-defined]


def pretend_aiter() -> None:
    """An installed AITER that has every name that vLLM looks for before it selects a backend."""
    sys.meta_path.insert(0, _AiterFinder())


def pretend_triton() -> None:
    """vLLM finds no driver and puts a placeholder for Triton; let its modules import anyway."""
    from vllm.triton_utils import importing

    def anything(*arguments: Any, **named: Any) -> Any:
        return arguments[0] if arguments and callable(arguments[0]) else (lambda function: function)

    importing.TritonLanguagePlaceholder.__getattr__ = lambda self, name: lambda *a, **k: None
    importing.TritonPlaceholder.__getattr__ = lambda self, name: anything


def pretend_versions(aiter: bool) -> None:
    """What our policy reads besides amdsmi: a current ROCm image's versions, a server's memory."""
    from vllm_amdopt import hardware
    from vllm_amdopt.integration import facts_from_vllm

    hardware.host_memory_bytes = lambda *a, **k: HOST_MEMORY_BYTES

    known = {"triton": TRITON_VERSION, "amd-aiter": AITER_VERSION if aiter else None}
    facts_from_vllm._version = lambda name: known[name]


def pretend_devices(gfx: str) -> None:
    """What vLLM asks PyTorch about the GPUs; asked only after vLLM's platform is there."""
    import torch
    from vllm.platforms import rocm

    product = PRODUCTS[gfx]
    rocm._rocm_device_count_stateless = lambda *a: GPUS
    properties = types.SimpleNamespace(
        name=product.name,
        gcnArchName=f"{gfx}:sramecc+:xnack-",
        multi_processor_count=product.compute_units,
        total_memory=product.memory_bytes,
        warp_size=64,
    )
    torch.cuda.get_device_properties = lambda *a, **k: properties
    torch.cuda.current_device = lambda: 0
    torch.cuda.device_count = lambda: GPUS
    torch.cuda.Stream = lambda *a, **k: types.SimpleNamespace()
    torch.cuda.Event = lambda *a, **k: types.SimpleNamespace()


def names(kinds: Sequence[str]) -> list[str]:
    """The products simulated, in words."""
    return [f"{PRODUCTS[gfx].name} ({gfx})" for gfx in kinds]
