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
import os
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

GPUS = 8
AITER_VERSION = "0.1.21.post2"
TRITON_VERSION = "3.6.0"
IMAGE_PACKAGES = ("flash_attn", "triton_kernels")
"""Without flash-attn vLLM builds no MLA model unless AITER is on: no prefill backend is left."""

LOOKED_UP_OPS = (
    "dynamic_per_token_scaled_fp8_quant",
    "dynamic_scaled_fp8_quant",
    "fused_add_rms_norm",
    "fused_add_rms_norm_static_fp8_quant",
    "fused_qk_norm_rope",
    "gelu_and_mul",
    "gelu_tanh_and_mul",
    "per_token_group_fp8_quant",
    "rms_norm",
    "rms_norm_dynamic_per_token_quant",
    "rms_norm_per_block_quant",
    "rms_norm_static_fp8_quant",
    "rotary_embedding",
    "silu_and_mul",
    "silu_and_mul_per_block_quant",
    "silu_and_mul_quant",
    "silu_and_mul_with_clamp",
    "static_scaled_fp8_quant",
    "swigluoai_and_mul",
)
"""Of vLLM's compiled ops those that Python looks up while it builds a configuration or a model."""

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


def product_of(gfx: str) -> Product:
    """The product simulated; of other kinds of GPU only the name matters."""
    other = Product(gfx, f"AMD {gfx} (simulated)", "0x0000", 64 << 30, 64)
    return PRODUCTS.get(gfx, other)


def stand_in(name: str, **attributes: Any) -> types.ModuleType:
    """A module in `sys.modules` with these attributes."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(attributes)
    sys.modules[name] = module
    return module


def pretend_amd_machine(gfx: str) -> None:
    """What vLLM asks amdsmi for, answered as on a machine with eight GPUs of this kind."""
    product = product_of(gfx)
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


class _Placeholder:
    """A stream or an event that nothing is ever put on."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one package and everything under it."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] != self.package:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__file__ = f"simulated/{module.__name__.replace('.', '/')}/__init__.py"
        parent, _, name = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], name, module)
        module.__dict__.update(LOOKED_INTO.get(module.__name__, {}))


class _EmptyTables:
    """AITER's paths of its tables of tuned GEMMs: each is an empty file."""

    def __getattr__(self, name: str) -> str:
        return os.devnull


def _mla_decode_fwd(q: object, causal: bool = True) -> None:
    raise NotImplementedError("a stand-in has no kernels")


def _fused_moe(
    hidden_states: object, quant_dtype_a: object = None, gate_mode: object = None
) -> None:
    raise NotImplementedError("a stand-in has no kernels")


LOOKED_INTO: dict[str, dict[str, Any]] = {
    "aiter": {
        "ActivationType": enum.Enum("ActivationType", "No Silu Gelu Swiglu"),
        "QuantType": enum.Enum(
            "QuantType", "No per_Tensor per_Token per_1x32 per_1x128 per_128x128"
        ),
    },
    "aiter.mla": {"mla_decode_fwd": _mla_decode_fwd},
    "aiter.fused_moe": {"fused_moe": _fused_moe},
    # No shape is in AITER's tables of tuned GEMMs: vLLM then takes its own kernels for them.
    "aiter.ops.gemm_op_a8w8": {
        "AITER_CONFIGS": _EmptyTables(),
        "get_GEMM_config_with_quant_type": lambda *a, **k: None,
        "get_gfx": lambda: "simulated",
        "get_cu_num": lambda: 0,
    },
    "aiter.ops.triton.utils.gemm_config_utils": {"get_gemm_config": lambda *a, **k: ({}, False)},
}
"""What vLLM inspects or calls before it selects, by module; signatures as in AITER_VERSION."""


def pretend_aiter() -> None:
    """An installed AITER that has every name that vLLM looks for before it selects a backend."""
    sys.meta_path.insert(0, _Finder("aiter"))


def pretend_rocm_image() -> None:
    """What every ROCm build or image of vLLM brings along: the packages, and the compiled ops."""
    for package in IMAGE_PACKAGES:
        sys.meta_path.insert(0, _Finder(package))


def pretend_torchvision() -> None:
    """transformers imports it with some models' image processors; vLLM's CPU build lacks it.

    transformers must have noted before that it is not there: it would ask for its version.
    """
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        sys.meta_path.insert(0, _Finder("torchvision"))


def pretend_compiled_ops() -> None:
    """The compiled ops that layers look up when they are built. None of them is ever called."""
    import torch

    library = torch.library.Library("_C", "FRAGMENT")
    for name in LOOKED_UP_OPS:
        if not hasattr(torch.ops._C, name):
            library.define(f"{name}(Tensor! out, Tensor input) -> ()")
    _libraries.append(library)


_libraries: list[Any] = []
"""An op lives as long as its library."""


def pretend_triton() -> None:
    """vLLM finds no driver and puts a placeholder for Triton; let its modules import anyway."""
    from vllm.triton_utils import importing

    def anything(*arguments: Any, **named: Any) -> Any:
        return arguments[0] if arguments and callable(arguments[0]) else (lambda function: function)

    importing.TritonLanguagePlaceholder.__getattr__ = lambda self, name: lambda *a, **k: None
    importing.TritonPlaceholder.__getattr__ = lambda self, name: anything


def pretend_versions(aiter: bool) -> None:
    """What our policy reads besides amdsmi: a current ROCm image's versions, a server's memory."""
    from vllm_amdopt import detection
    from vllm_amdopt.integration import facts_from_vllm

    detection.host_memory_bytes = lambda *a, **k: HOST_MEMORY_BYTES

    known = {"triton": TRITON_VERSION, "amd-aiter": AITER_VERSION if aiter else None}
    facts_from_vllm._version = lambda name: known[name]


def pretend_devices(gfx: str) -> None:
    """What vLLM asks PyTorch about the GPUs; asked only after vLLM's platform is there."""
    import torch
    from vllm.platforms import rocm

    product = product_of(gfx)
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
    torch.accelerator.current_device_index = lambda: 0
    torch.accelerator.empty_cache = lambda: None
    torch.cuda.Stream = torch.cuda.Event = _Placeholder


def names(kinds: Sequence[str]) -> list[str]:
    """The products simulated, in words."""
    return [f"{PRODUCTS[gfx].name} ({gfx})" for gfx in kinds]
