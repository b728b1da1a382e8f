"""What the emulator does not know stops the kernel with its text, line and name: never a no-op."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.emulator import kernels
from tests.emulator.machine_code import execute
from vllm_amdopt.emulator.assembly import parse_line
from vllm_amdopt.emulator.definitions import EmuError, EndlessLoop, MemFault, Unsupported
from vllm_amdopt.emulator.launch import emulate, launch
from vllm_amdopt.emulator.operations import CACHE_CONTROL, NO_EFFECT
from vllm_amdopt.emulator.registers import NUMPY_TYPE, WIDE
from vllm_amdopt.emulator.run import run
from vllm_amdopt.emulator.scalar import LOGIC, SAVE_EXEC, SCALAR_ALU
from vllm_amdopt.emulator.vector_lanes import SPECIALS
from vllm_amdopt.emulator.vector_table import VECTOR_ALU

MODIFIERS = [
    "clamp",
    "mul:4",
    "op_sel:[1,1,1,1]",
    "op_sel_hi:[0,0,0]",
    "neg_lo:[1,1,1]",
    "row_shl:1 row_mask:0xf bank_mask:0xf",
    "dst_sel:BYTE_1 src0_sel:BYTE_1",
    "bitop3:0x55",
    "offset:8",
    "gds",
    "cbsz:1",
    "sc0",
    "nonsense",
]
# Honoured, but without effect on these operands: the result lies in [0, 1], or is infinite.
WITHOUT_EFFECT = {"clamp": ("v_fract_",), "mul:4": ("v_ldexp_",)}


def operands_of(name: str) -> tuple[str, dict[str, np.ndarray]]:
    """Operands for an instruction of the table, and registers with values that matter."""
    results, sources, _ = VECTOR_ALU[name]
    rng = np.random.default_rng(0)
    texts, registers, number = [], {}, 0
    for code in results:
        if code in "mx":
            texts.append("s[2:3]")
        else:
            texts.append(f"v[{number}:{number + 1}]" if code in WIDE else f"v{number}")
            number += 2
    for code in sources.replace("D", ""):
        if code == "m":
            texts.append("s[4:5]")
            registers["s[4:5]"] = np.array([0x5555555555555555], np.uint64)
            continue
        texts.append(f"v[{number}:{number + 1}]" if code in WIDE else f"v{number}")
        if code in "fFhb":
            values = rng.uniform(1.5, 60, 64) * rng.choice([-1, 1], 64)
            kind = {"b": np.float32}.get(code, NUMPY_TYPE[code])
            bits = values.astype(kind).view(f"u{np.dtype(kind).itemsize}").astype(np.uint64)
            if code in "hb":  # the other half holds something else
                bits = bits & np.uint64(0xFFFF0000) | bits >> np.uint64(16) if code == "b" else bits
                bits |= np.uint64(0x4248) << np.uint64(16)
        else:
            bits = rng.integers(1 << 20, 1 << 32, 64, np.uint64)
        registers[texts[-1]] = bits
        number += 2
    return ", ".join(texts), registers


def outcome_of(name: str, modifier: str, encoding: str = "") -> bytes:
    """Vector and scalar destination after the instruction, denormals flushed."""
    operands, registers = operands_of(name)
    result = execute(
        "gfx950",
        f"{name}{encoding} {operands} {modifier}",
        registers={"v0": 7, "v1": 7} | registers,
        descriptor="float_denorm_mode_32 0\nfloat_denorm_mode_16_64 0",
    )
    return result.machine.vgprs[:2].tobytes() + result.machine.sgprs[:, 2:4].tobytes()


@pytest.mark.parametrize("modifier", MODIFIERS)
def test_a_modifier_is_honoured_or_refused_on_every_vector_instruction(modifier):
    """The whole table: with the modifier the result differs, or the instruction is refused."""
    encoding = "_dpp" if "row_shl" in modifier else "_sdwa" if "dst_sel" in modifier else ""
    ignored = []
    for name in VECTOR_ALU:
        try:
            changed = outcome_of(name, modifier, encoding)
        except Unsupported as error:
            assert name in str(error)
            continue
        if changed == outcome_of(name, ""):
            ignored.append(name)
    harmless = WITHOUT_EFFECT.get(modifier, ())
    assert [name for name in ignored if not name.startswith(harmless)] == []


@pytest.mark.parametrize("modifier", MODIFIERS)
def test_special_vector_instructions_take_only_what_they_declare(modifier):
    declared = parse_line(f"v_x v0, v1 {modifier}")[2]
    for name, (_, accepted) in SPECIALS.items():
        if all(key in accepted for key in declared):
            continue
        with pytest.raises(Unsupported, match="modifier"):
            execute("gfx950", f"{name} v0, v1, v2, v3 {modifier}")


@pytest.mark.parametrize("name", [*SCALAR_ALU, *SAVE_EXEC])
def test_scalar_instructions_take_no_modifiers(name):
    code, sources, *_ = SCALAR_ALU.get(name, ("U", "U"))
    wide = [code, *sources.replace("D", "").replace("C", "")]
    operands = ", ".join(
        f"s[{8 + 2 * n}:{9 + 2 * n}]" if c in WIDE else f"s{8 + 2 * n}" for n, c in enumerate(wide)
    )
    execute("gfx942", f"{name} {operands}")
    with pytest.raises(Unsupported):
        execute("gfx942", f"{name} {operands} clamp")
    assert LOGIC


def test_what_has_no_effect_is_a_short_list():
    """Everything here is timing, tracing or caches; nothing else may be skipped."""
    expected = {
        "s_nop",
        "s_sleep",
        "s_setprio",
        "s_wakeup",
        "s_sendmsg",
        "s_ttracedata",
        "s_incperflevel",
        "s_decperflevel",
        "ds_nop",
    }
    assert sorted(NO_EFFECT) == sorted(expected)
    assert all(name.startswith(("buffer_", "s_dcache", "s_icache")) for name in CACHE_CONTROL)


@pytest.mark.parametrize(
    "line",
    [
        "v_frobnicate_f32 v0, v1",
        "s_frobnicate_b32 s0, s1",
        "ds_frobnicate_b32 v0, v1",
        "global_frobnicate_dword v0, v1, s[0:1]",
        "buffer_frobnicate v0, v1, s[0:3], 0",
        "frobnicate",
        "v_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], v[0:7]",
        "exp mrt0 v0, v0, v0, v0",
        "v_add_f32 v0, v1, lds_direct",
        "v_add_f32 v0, v1, unknown_symbol",
        "s_cbranch_i_fork s[0:1], there",
        "s_branch nowhere",
    ],
)
def test_an_unknown_instruction_stops_with_text_line_and_kernel(line):
    with pytest.raises(EmuError) as caught:
        execute("gfx942", f"s_nop 0\n{line}")
    message = str(caught.value)
    assert message.startswith("kernel tested: ")
    assert f"at: {line}   [asm line 5]" in message


def test_instructions_that_are_not_reached_do_not_matter():
    execute("gfx942", "s_branch over\nv_frobnicate_f32 v0, v1\nover:\ns_nop 0")


COMPILED: dict[str, str] = {}


def vector_add(arch: str = "gfx942") -> str:
    """The machine code of a kernel that Triton compiled."""
    if arch not in COMPILED:
        a = torch.ones(64)
        with emulate(arch):
            compiled = kernels.vector_add[(1,)](a, a, torch.empty(64), 64, BLOCK=64, num_warps=1)
        COMPILED[arch] = compiled.asm["amdgcn"]
    return COMPILED[arch]


def run_edited(old: str, new: str) -> None:
    text = vector_add()
    assert old in text
    a = torch.ones(64)
    run(text.replace(old, new), None, (1,), 1, [a, a, torch.empty(64), 64], "gfx942")


def test_a_compiled_kernel_names_its_source_line():
    with pytest.raises(Unsupported) as caught:
        run_edited("v_add_f32_e32", "v_frobnicate_f32_e32")
    message = str(caught.value)
    assert message.startswith("kernel vector_add: instruction v_frobnicate_f32_e32")
    assert "[asm line " in message and "kernels.py:" in message


def test_a_fault_names_the_argument():
    x, y = torch.randn(100), torch.zeros(100)
    with pytest.raises(MemFault) as caught:
        launch(kernels.through_a_stray_offset, (1,), x, y, 3, BLOCK=64)
    message = str(caught.value)
    assert message.startswith("kernel through_a_stray_offset: load of ")
    assert "buffer arg0 (x), 400 bytes, offset 0" in message


def test_an_endless_kernel_names_its_source_line():
    flag, data, out = torch.zeros(1, dtype=torch.int32), torch.ones(1), torch.zeros(1)
    with pytest.raises(EndlessLoop, match=r"loop at \.LBB0_\d, asm lines \d+ to \d+ \(kernels.py"):
        launch(kernels.wait_for, (1,), flag, data, out, max_blocks=500, num_warps=1)


def test_modes_that_are_not_emulated_are_refused():
    with pytest.raises(Unsupported, match="rounding mode"):
        execute("gfx942", "s_nop 0", descriptor="float_round_mode_32 1")
    with pytest.raises(Unsupported, match="rounding mode"):
        execute("gfx942", "s_nop 0", descriptor="float_round_mode_16_64 3")


def test_launches_that_cannot_be_are_refused():
    text = vector_add()
    with pytest.raises(Unsupported, match="architecture gfx942"):
        run(text, None, (1,), 1, [], "gfx950")
    with pytest.raises(EmuError, match="7 arguments for a kernel with 6"):
        run(text, None, (1,), 1, [0] * 7)
    with pytest.raises(EmuError, match="asks for 70000 bytes of LDS, gfx942 has 65536"):
        run(text, None, (1,), 1, [0] * 4, shared=70000)
    with pytest.raises(EmuError, match=r"mem\[0\] is neither a tensor nor an array"):
        run(text, None, (1,), 1, [0] * 4, mem=[5])


def test_data_that_holds_addresses_is_refused():
    body = (
        "s_getpc_b64 s[2:3]\ns_add_u32 s2, s2, table@rel32@lo+4\ns_endpgm\n"
        ".rodata\ntable:\n.quad tested\n.text"
    )
    with pytest.raises(Unsupported, match="data table that holds addresses"):
        execute("gfx942", body)
