"""Compiling a kernel variant for a chip that is not there. Measures nothing."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_amdopt.kernels.variants import CodegenVariant

ARCHITECTURES = ("gfx942", "gfx950")
FP8 = {"gfx942": "fp8e4b8", "gfx950": "fp8e4nv"}
"""Each chip's own e4m3, by Triton's name: fnuz, and the OCP one. A variant writes `fp8`."""


class CodegenError(RuntimeError):
    """A variant did not compile; the message is a sentence with the variant's name."""


def variants(name_part: str = "") -> Iterator[CodegenVariant]:
    """The CODEGEN_VARIANTS of every kernel file, those whose name contains name_part."""
    from vllm_amdopt import kernels
    from vllm_amdopt.kernels import availability

    prefix = f"{kernels.__name__}."
    for module in sorted(m.name for m in pkgutil.walk_packages(kernels.__path__, prefix)):
        if module.startswith(f"{prefix}cdna.") and not availability.gluon_for_cdna():
            continue
        imported = importlib.import_module(module)
        for variant in getattr(imported, "CODEGEN_VARIANTS", ()):
            if name_part in variant.name:
                yield variant


def compile_variant(variant: CodegenVariant, gfx: str) -> Any:
    """The variant as a Triton CompiledKernel for `gfx`, or CodegenError if it does not compile."""
    try:
        from triton import knobs
        from triton.backends.compiler import GPUTarget
        from triton.compiler import compile
    except ImportError as error:
        raise CodegenError(
            f"Triton, which compiles the kernels, cannot be imported: {error}."
        ) from error
    if knobs.runtime.interpret:
        raise CodegenError("Triton's interpreter is on; unset TRITON_INTERPRET to compile kernels.")
    names = variant.kernel.arg_names
    constants = {**variant.constexprs, **variant.by_gfx.get(gfx, {})}
    missing = [n for n in names if n not in variant.signature and n not in constants]
    if missing:
        raise CodegenError(
            f"{variant.name} gives no type or constant for {', '.join(missing)}; "
            "complete its CODEGEN_VARIANTS entry."
        )
    signature: dict[str, Any] = {}
    for name in names:
        kind = "constexpr" if name in constants else variant.signature[name]
        signature[name] = kind.replace("fp8", FP8[gfx]) if kind in ("fp8", "*fp8") else kind
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "waves_per_eu": variant.waves_per_eu,
        # What Triton 3.9 does unless told otherwise, and 3.10 will not.
        "enable_fp_fusion": True,
    }
    try:
        source = _source_class(variant)(
            fn=variant.kernel,
            signature=signature,
            constexprs=constants,
            attrs=_attributes(variant, signature, gfx),
        )
        return compile(source, target=GPUTarget("hip", gfx, 64), options=options)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise CodegenError(
            f"{variant.name} does not compile for {gfx}: {type(error).__name__}: {first}"
        ) from error


def _source_class(variant: CodegenVariant) -> Any:
    """What Triton takes a kernel of this language in: Triton itself, or Gluon."""
    if variant.kernel.is_gluon():
        from triton.experimental.gluon import GluonASTSource

        return GluonASTSource
    from triton.compiler import ASTSource

    return ASTSource


def _attributes(
    variant: CodegenVariant, signature: dict[str, Any], gfx: str
) -> dict[tuple[int, ...], list[list[Any]]]:
    """What Triton's launcher would find out about the arguments, by their position."""
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, (name, kind) in enumerate(signature.items()):
        members: list[tuple[tuple[int, ...], Any]] = [((i,), kind)]
        if isinstance(kind, tuple):
            members = [((i, j), item) for j, item in enumerate(kind)]
        for path, item in members:
            pointer = item.startswith("*")
            if pointer or name in variant.divisible_by_16:
                attributes[path] = [["tt.divisibility", 16]]
            if pointer and gfx.startswith("gfx9") and name not in variant.over_2_gib:
                # Found for tensors whose storage is under 2 GiB: buffer instructions.
                attributes[path].append(["tt.pointer_range", 32])
    return attributes
