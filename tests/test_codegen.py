"""Every kernel variant that serving can ask for compiles for both chips, into what it should."""

import dataclasses
import inspect
import json
import re

import pytest
import triton
import triton.language as tl

from vllm_amdopt import codegen
from vllm_amdopt.codegen import assembly, command, document, occupancy
from vllm_amdopt.kernels.variants import Budget, CodegenVariant

VARIANTS = list(codegen.variants())
FORMS = [
    pytest.param(variant, gfx, id=f"{variant.name}-{gfx}")
    for variant in VARIANTS
    for gfx in codegen.ARCHITECTURES
]


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


@pytest.mark.parametrize(("variant", "gfx"), FORMS)
def test_variant_keeps_its_budget(variant, gfx):
    kernel = codegen.compile_variant(variant, gfx)
    text = kernel.asm["amdgcn"]
    made = codegen.read(text, variant, gfx, kernel.metadata.shared)
    assert codegen.violations(made, variant.budgets[gfx]) == []
    assert sum(made.stores.values()) > 0
    # LLVM prints the waves that the registers leave.
    (printed,) = re.findall(r"^; Occupancy: (\d+)", text, re.MULTILINE)
    most = variant.waves_per_eu or int(printed)
    assert min(occupancy.waves_by_registers(made.vgpr), most) == int(printed)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_budget_has_a_matrix_instruction_where_the_source_multiplies(variant):
    kernel = inspect.getsource(variant.kernel.fn)
    assert set(variant.budgets) == set(codegen.ARCHITECTURES)
    for budget in variant.budgets.values():
        assert ("tl.dot" in kernel or "AMDMFMALayout" in kernel) == bool(budget.matrix)


@pytest.mark.parametrize(
    ("registers", "lds_bytes", "num_warps", "gfx", "expected"),
    [
        pytest.param(128, 0, 4, "gfx942", 4, id="registers"),
        pytest.param(129, 0, 4, "gfx942", 3, id="one-register-too-many"),
        pytest.param(512, 0, 4, "gfx942", 1, id="all-registers"),
        pytest.param(16, 16 << 10, 4, "gfx942", 4, id="lds"),
        pytest.param(16, (16 << 10) + 1, 4, "gfx942", 3, id="one-granule-too-many"),
        pytest.param(16, 16 << 10, 4, "gfx950", 8, id="more-lds"),
        pytest.param(16, 40 << 10, 8, "gfx942", 2, id="eight-waves"),
        pytest.param(16, 40 << 10, 1, "gfx942", 0.25, id="one-wave-alone"),
        pytest.param(300, 0, 8, "gfx942", 0, id="does-not-fit"),
    ],
)
def test_waves_per_simd(registers, lds_bytes, num_warps, gfx, expected):
    assert occupancy.waves_per_simd(registers, lds_bytes, num_warps, gfx) == expected


KEPT = codegen.CodegenReport(
    variant="made up",
    gfx="gfx942",
    vgpr=100,
    agpr=0,
    sgpr=50,
    spills=0,
    scalar_spills=0,
    scratch_bytes=0,
    lds_bytes=16384,
    num_warps=4,
    waves_per_simd=4,
    instructions=100,
    matrix={"f32_16x16x16_bf16": 8},
    loads={128: 9, 32: 3},
    loop_loads={128: 8, 32: 1},
    loop_full_waits=1,
)
BUDGET = Budget(4, "f32_16x16x16_bf16", {32: 1}, 1, wave_private=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"spills": 3, "scratch_bytes": 16}, "3 registers spill", id="spills"),
        pytest.param({"scratch_bytes": 16}, "16 bytes of scratch", id="scratch"),
        pytest.param({"scalar_spills": 1}, "1 scalar registers spill", id="scalar-spills"),
        pytest.param({"lds_bytes": 65537}, "more than gfx942 has", id="lds"),
        pytest.param({"waves_per_simd": 3.0}, "leave 3 waves per SIMD, not 4", id="waves"),
        pytest.param({"matrix": {}}, "are none, not f32_16x16x16_bf16", id="no-matrix"),
        pytest.param(
            {"matrix": {"f32_16x16x16_bf16": 8, "f32_4x4x4_16b_f16": 1}},
            "are f32_16x16x16_bf16, f32_4x4x4_16b_f16, not",
            id="another-matrix",
        ),
        pytest.param({"loop_loads": {64: 16}}, "no load is 128 bits", id="narrow-stream"),
        pytest.param({"loop_loads": {128: 8, 32: 2}}, "2 loads of the main loop", id="more-narrow"),
        pytest.param({"loop_full_waits": 2}, "2 times, not 1", id="full-waits"),
        pytest.param({"loop_serial_loads": 1}, "1 loads of the main loop", id="serial-loads"),
        pytest.param({"loop_shared": 2}, "2 instructions of the main loop", id="shared"),
    ],
)
def test_what_is_over_budget_is_said(change, words):
    assert codegen.violations(KEPT, BUDGET) == []
    found = codegen.violations(dataclasses.replace(KEPT, **change), BUDGET)
    assert any(words in sentence for sentence in found), found


LOOPS = """
kernel:
  s_load_dwordx2 s[0:1], s[2:3], 0x0
.LBB0_1:  ; a loop that waits and computes nothing
  global_load_dword v1, v[2:3], off sc0 sc1
  s_waitcnt vmcnt(0)
  s_cbranch_scc1 .LBB0_1
.LBB0_2:                                ; =>This Loop Header: Depth=1
  buffer_load_dwordx4 v[4:7], v0, s[4:7], 0 offen
  buffer_load_dword v8, v0, s[8:11], 0 offen
  s_waitcnt vmcnt(1)
.LBB0_3:
  v_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], v[0:3]
  s_waitcnt vmcnt(0) lgkmcnt(0)
  s_cbranch_vccnz .LBB0_2
  global_store_short_d16_hi v[0:1], v2, off
  s_endpgm
"""


def test_the_main_loop_is_the_one_that_multiplies():
    code = assembly.parse(LOOPS)
    loop = code.main_loop()
    assert [instruction.name for instruction in loop] == [
        "buffer_load_dwordx4",
        "buffer_load_dword",
        "s_waitcnt",
        "v_mfma_f32_16x16x16_bf16",
        "s_waitcnt",
        "s_cbranch_vccnz",
    ]
    assert assembly.accesses(loop, "load") == {128: 1, 32: 1}
    assert [instruction.waits_for_all_loads for instruction in loop].count(True) == 1
    assert assembly.serial_loads(loop) == 1
    assert assembly.accesses(code.instructions, "store") == {16: 1}
    words = "s_barrier ds_read_b128 ds_write_b32 ds_bpermute_b32 v_add_f32"
    lines = assembly.parse("\n".join(f"  {word} v0" for word in words.split())).instructions
    assert [line.is_shared for line in lines] == [True, True, True, False, False]
    assert assembly.matrix_instructions(loop) == {"f32_16x16x16_bf16": 1}
    assert assembly.matrix_flops("f32_16x16x16_bf16") == 8192


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
    monkeypatch.setattr(command, "variants", lambda name_part="": iter([broken]))
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
    names = [variant.name for variant in codegen.variants("gemm/bf16/m16")]
    assert [entry["variant"] for entry in made] == names
    assert all(entry["gfx"] == "gfx950" and entry["spills"] == 0 for entry in made)
    assert codegen.main(["--gfx", "gfx950", "--kernel", "gemm/bf16/m16"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["variant", "gfx", "vgpr"]
    assert len(table) == 1 + len(names)


def test_no_such_kernel_is_an_error(capsys):
    assert codegen.main(["--kernel", "no-such-kernel"]) == 1
    assert "no kernel variant has 'no-such-kernel'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param("load128 wait0 load128 wait0", 2, id="one-by-one"),
        pytest.param("load128 load128 wait0", 0, id="together"),
        pytest.param("load128 load128 wait1 wait0", 0, id="in-turn"),
        pytest.param("load128 load32 wait0", 1, id="with-an-index"),
        pytest.param("wait0 multiply load128", 1, id="for-the-next-round"),
        pytest.param("load128 wait0 multiply load128", 0, id="one-a-round-ahead"),
    ],
)
def test_loads_that_nothing_overlaps_are_counted(lines, expected):
    words = {
        "load128": "global_load_dwordx4 v[0:3], v[4:5], off",
        "load32": "buffer_load_dword v0, v1, s[0:3], 0 offen",
        "wait0": "s_waitcnt vmcnt(0)",
        "wait1": "s_waitcnt vmcnt(1)",
        "multiply": "v_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], v[0:3]",
    }
    text = "\n".join("  " + words[word] for word in lines.split())
    assert assembly.serial_loads(assembly.parse(text).instructions) == expected


def test_a_document_that_differs_is_an_error_that_says_what_to_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(document, "document", lambda: "as it is\n")
    written = tmp_path / "codegen.md"
    assert codegen.main(["--check", str(written)]) == 1
    assert codegen.main(["--write", str(written)]) == 0
    assert codegen.main(["--check", str(written)]) == 0
    written.write_text("as it was\n")
    assert codegen.main(["--check", str(written)]) == 1
    assert f"run `python -m vllm_amdopt.codegen --write {written}`" in capsys.readouterr().err
