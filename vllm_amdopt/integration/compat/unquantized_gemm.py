"""Put our GEMM in at the place that all unquantized linear layers of a platform go through.

vLLM (0.30-0.33) has no registry for unquantized GEMMs, as it has for quantized ones. Hence, per
platform:

- cpu: the hook of patches/vllm/0001 where it is applied; otherwise an override of
  `layers.utils.dispatch_cpu_unquantized_gemm(layer, remove_weight)`, which chooses a layer's GEMM
  after its weights are loaded. Ours chooses first and calls the original where it refuses.
- rocm: the implementation behind the op `vllm::rocm_unquantized_gemm`; callers and fusion patterns
  keep seeing the same op.
- cuda: `layers.utils.default_unquantized_gemm`, looked up by vLLM when a layer is created.

Remove when vLLM's linear-kernel registry takes unquantized kernels.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from vllm_amdopt.integration import faults, linear_layers, self_test

_LIBRARIES: list[torch.library.Library] = []
"""Op registrations live as long as their Library object does."""


@cache
def install(platform: str) -> None:
    """Install the override for `platform` ("cpu", "rocm", "cuda"), once per process."""
    {"cpu": _install_cpu, "rocm": _install_rocm, "cuda": _install_cuda}[platform]()


@cache
def define_op(name: str) -> Any:
    """The op `vllm_amdopt::<name>(x, weight, bias?)`: opaque to torch.compile, and capturable."""
    library = torch.library.Library("vllm_amdopt", "FRAGMENT")
    library.define(f"{name}(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
    library.impl(name, _linear_or_torch, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vllm_amdopt::{name}", _fake, lib=library)
    _LIBRARIES.append(library)
    return getattr(torch.ops.vllm_amdopt, name)


def _linear_or_torch(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return linear_layers.linear(x, weight, bias, torch.nn.functional.linear)


def _fake(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _install_cpu() -> None:
    from vllm.model_executor.layers import utils

    linear = define_op("linear_small_batch")

    def choose(layer: torch.nn.Module) -> Any:
        def ours() -> Any:
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            if weight.is_meta or linear_layers.layer_refusal(weight) is not None:
                return None
            self_test.check_gemm(weight.dtype)
            return linear

        return faults.attempt("gemm_bind", ours, lambda: None)

    if hasattr(utils, "register_cpu_unquantized_gemm"):
        utils.register_cpu_unquantized_gemm(choose)
        return
    stock = utils.dispatch_cpu_unquantized_gemm

    def dispatch_cpu_unquantized_gemm(layer: torch.nn.Module, remove_weight: bool) -> None:
        gemm = choose(layer)
        if gemm is None:
            stock(layer, remove_weight)
        else:
            layer.cpu_linear = gemm

    utils.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm


def _install_rocm() -> None:
    from vllm.model_executor.layers import utils

    stock = utils.rocm_unquantized_gemm_impl

    def rocm_unquantized_gemm(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if linear_layers.layer_refusal(weight) is not None:
            return stock(x, weight, bias)
        return linear_layers.linear(x, weight, bias, stock)

    library = torch.library.Library("vllm", "IMPL")
    library.impl("rocm_unquantized_gemm", rocm_unquantized_gemm, "CUDA", allow_override=True)
    _LIBRARIES.append(library)


def _install_cuda() -> None:
    from vllm.model_executor.layers import utils

    stock = utils.default_unquantized_gemm
    linear = define_op("linear_small_batch")

    def default_unquantized_gemm(
        layer: torch.nn.Module,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if linear_layers.layer_refusal(weight) is not None:
            return stock(layer, x, weight, bias)
        return linear(x, weight, bias)

    utils.default_unquantized_gemm = default_unquantized_gemm
