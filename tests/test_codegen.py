"""Every kernel variant that serving can ask for compiles for both chips, into what it should."""

import inspect
import json

import pytest
import triton
import triton.language as tl

from vllm_amdopt import codegen
from vllm_amdopt.kernels.variants import CodegenVariant

LDS_BYTES = {"gfx942": 64 << 10, "gfx950": 160 << 10}
VARIANTS = list(codegen.variants())


def _multiplies_matrices(variant: CodegenVariant) -> bool:
    """whether the kernel, or a jitted function it calls, holds a tl.dot, on 16-bit inputs"""
    if not any(kind in ("*bf16", "*fp16") for kind in variant.signature.values()):
        return False
    return "tl.dot" in inspect.getsource(inspect.getmodule(variant.kernel.fn)) and not (
        variant.name.startswith(("reduce/", "write_"))
    )


@pytest.fixture(scope="module")
def reports():
    """compiled once, from Triton's cache where it has them"""
    return {
        (variant.name, gfx): codegen.report(variant, gfx)
        for variant in VARIANTS
        for gfx in codegen.ARCHITECTURES
    }


def test_names_are_unique_and_every_kernel_file_has_variants():
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names)
    stems = {variant.kernel.__module__.rsplit(".", 1)[-1] for variant in VARIANTS}
    assert {
        "all_reduce_one_shot",
        "gemm_small_batch",
        "kv_cache_write",
        "mla_decode",
        "paged_attention_decode",
        "paged_attention_prefill",
    } <= stems


@pytest.mark.parametrize("gfx", codegen.ARCHITECTURES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_variant_fits_the_chip(variant, gfx, reports):
    made = reports[variant.name, gfx]
    assert made.spills == 0
    assert made.scratch_bytes == 0
    assert made.lds_bytes <= LDS_BYTES[gfx]
    assert 0 < made.vgpr <= 512
    assert sum(made.loads.values()) > 0
    assert sum(made.stores.values()) > 0
    if _multiplies_matrices(variant):
        kind = "bf16" if "*bf16" in variant.signature.values() else "f16"
        assert made.matrix
        assert all(name.endswith(kind) for name in made.matrix)


@triton.jit
def _spilling(x, out, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    v = tl.load(x + o)
    tl.store(out + o, v * tl.sum(v))


@triton.jit
def _broken(x, out, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), tl.load(x + tl.arange(0, BLOCK + 1)))


def _variant(kernel, name, block):
    types = {"x": "*fp32", "out": "*fp32"}
    return CodegenVariant(name, kernel, types, {"BLOCK": block}, num_warps=1)


def test_spills_are_seen():
    made = codegen.report(_variant(_spilling, "spilling", 32768), "gfx942")
    assert made.spills > 0
    assert made.scratch_bytes > 0


def test_a_kernel_that_does_not_compile_is_named(monkeypatch, capsys):
    broken = _variant(_broken, "broken/kernel", 64)
    monkeypatch.setattr(codegen, "variants", lambda name_part="": iter([broken]))
    assert codegen.main(["--gfx", "gfx942"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("codegen: broken/kernel does not compile for gfx942: ")


def test_a_missing_type_is_named():
    partial = CodegenVariant("partial", _spilling, {"x": "*fp32"}, {"BLOCK": 64}, num_warps=1)
    with pytest.raises(codegen.CodegenError, match="no type or constant for out"):
        codegen.compile_variant(partial, "gfx942")


def test_json_holds_what_the_table_shows(capsys):
    assert codegen.main(["--gfx", "gfx950", "--kernel", "gemm/bf16/m16", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert {entry["variant"] for entry in made} == {"gemm/bf16/m16", "gemm/bf16/m16/bias"}
    assert all(entry["gfx"] == "gfx950" and entry["spills"] == 0 for entry in made)
    assert codegen.main(["--gfx", "gfx950", "--kernel", "gemm/bf16/m16"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["variant", "gfx", "vgpr"]
    assert len(table) == 3


def test_no_such_kernel_is_an_error(capsys):
    assert codegen.main(["--kernel", "no-such-kernel"]) == 1
    assert "no kernel variant has 'no-such-kernel'" in capsys.readouterr().err
