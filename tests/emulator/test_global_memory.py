"""Global, flat, buffer, scalar and scratch memory: widths, addressing, atomics, faults."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emulator.machine_code import execute, mask_of
from vllm_amdopt.emulator.definitions import MemFault, Unsupported

LANES = np.arange(64)
RNG = np.random.default_rng(0)


def buffer(count: int = 4096) -> np.ndarray:
    return RNG.integers(0, 256, count, np.uint8)


def address_of(array: np.ndarray) -> int:
    return int(array.ctypes.data)


LOADS = {  # suffix -> (bytes, signed, half)
    "ubyte": (1, False, None),
    "sbyte": (1, True, None),
    "ushort": (2, False, None),
    "sshort": (2, True, None),
    "dword": (4, False, None),
    "dwordx2": (8, False, None),
    "dwordx3": (12, False, None),
    "dwordx4": (16, False, None),
    "ubyte_d16": (1, False, 0),
    "ubyte_d16_hi": (1, False, 1),
    "sbyte_d16": (1, True, 0),
    "sbyte_d16_hi": (1, True, 1),
    "short_d16": (2, False, 0),
    "short_d16_hi": (2, False, 1),
}
STORES = {  # suffix -> (bytes, first bit)
    "byte": (1, 0),
    "byte_d16_hi": (1, 16),
    "short": (2, 0),
    "short_d16_hi": (2, 16),
    "dword": (4, 0),
    "dwordx2": (8, 0),
    "dwordx3": (12, 0),
    "dwordx4": (16, 0),
}
# how the instruction names 16 bytes behind a lane's offset -> (line, registers)
FORMS = ["global-vector", "global-scalar", "flat", "buffer", "scratch"]


def access(form: str, kind: str, suffix: str, data: str, base: int, offset: np.ndarray, size: int):
    """-> (line, registers) of an access at base + offset + 16"""
    before, after = (f"{data}, ", "") if kind == "load" else ("", f", {data}")
    if form == "buffer":
        line = f"buffer_{kind}_{suffix} {data}, v1, s[4:7], s8 offen offset:4"
        descriptor = {"s4": base & 0xFFFFFFFF, "s5": base >> 32, "s6": size, "s7": 0x27000}
        return line, descriptor | {"s8": 12, "v1": offset}
    if form == "scratch":
        return f"scratch_{kind}_{suffix} {before}v1{after}, s8 offset:4", {"v1": offset, "s8": 12}
    if form == "global-scalar":
        line = f"global_{kind}_{suffix} {before}v1{after}, s[4:5] offset:16"
        return line, {"v1": offset, "s[4:5]": base}
    name = "flat" if form == "flat" else "global"
    tail = "" if form == "flat" else ", off"
    line = f"{name}_{kind}_{suffix} {before}v[2:3]{after}{tail} offset:16"
    return line, {"v[2:3]": base + offset}


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("form", [form for form in FORMS if form != "scratch"])
@pytest.mark.parametrize("suffix", LOADS)
def test_load(form, suffix, aligned):
    size, is_signed, half = LOADS[suffix]
    memory = buffer()
    offset = RNG.permutation(64) * 16 + (0 if aligned else RNG.integers(0, 16, 64))
    count = max(1, size // 4)
    data = f"v[8:{7 + count}]" if count > 1 else "v8"
    line, registers = access(form, "load", suffix, data, address_of(memory), offset, 4096)
    registers["v8"] = 0x11112222
    outcome = execute("gfx942", line, registers=registers, buffers={"x": memory})
    for lane in range(64):
        at = offset[lane] + 16
        value = int.from_bytes(bytes(memory[at : at + size]), "little", signed=is_signed)
        expected = value & ((1 << 32 * count) - 1)
        if half is not None:
            expected = value & 0xFFFF
            expected = expected << 16 | 0x2222 if half else 0x11110000 | expected
        got = sum(int(outcome.v(8 + n)[0, lane]) << 32 * n for n in range(count))
        assert got == expected
    assert outcome.machine.bytes["global_load"] == 64 * size


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", STORES)
def test_store_by_the_enabled_lanes(form, suffix, aligned):
    size, shift = STORES[suffix]
    memory = buffer()
    before = memory.copy()
    offset = LANES * 16 + (0 if aligned else 3)
    if form == "scratch":
        offset = np.full(64, 0 if aligned else 3)
    values = RNG.integers(0, 1 << 32, (4, 64), np.uint64)
    count = max(1, size // 4)
    data = f"v[8:{7 + count}]" if count > 1 else "v8"
    line, registers = access(form, "store", suffix, data, address_of(memory), offset, 4096)
    on = LANES % 3 > 0
    registers |= {f"v{8 + n}": values[n] for n in range(4)} | {"exec": mask_of(LANES[on])}
    outcome = execute("gfx942", line, registers=registers, buffers={"x": memory}, scratch=64)
    scratch = outcome.machine.scratch
    for lane in range(64):
        raw = sum(int(values[n, lane]) << 32 * n for n in range(4)) >> shift
        expected = (raw & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        if form == "scratch":
            at = lane * 64 + offset[lane] + 16
            poison = b"\xa5" * size
            assert bytes(scratch[at : at + size]) == (expected if on[lane] else poison)
        elif on[lane]:
            at = offset[lane] + 16
            before[at : at + size] = np.frombuffer(expected, np.uint8)
    assert (memory == before).all()


@pytest.mark.parametrize("suffix", LOADS)
def test_scratch_is_read_back(suffix):
    size, is_signed, half = LOADS[suffix]
    body = (
        "scratch_store_dwordx4 off, v[4:7], off offset:16\n"
        f"scratch_load_{suffix} v[8:{7 + max(1, size // 4)}], v1, off offset:16"
    )
    registers = {f"v{4 + n}": LANES * 0x01030507 + n * 0x10000 + 0x80C0 for n in range(4)}
    registers |= {"v1": 1 if size < 4 else 0, "v8": 0x11112222}
    outcome = execute("gfx942", body, registers=registers, scratch=32)
    for lane in range(64):
        word = (lane * 0x01030507 + 0x80C0) & 0xFFFFFFFF
        value = word >> (8 if size < 4 else 0) & ((1 << 8 * min(size, 4)) - 1)
        if is_signed and value >> (8 * size - 1):
            value -= 1 << 8 * size
        if half is not None:
            value = (value & 0xFFFF) << 16 | 0x2222 if half else 0x11110000 | value & 0xFFFF
        assert outcome.v(8)[0, lane] == value & 0xFFFFFFFF


def test_buffer_reads_zero_beyond_its_end_dword_by_dword():
    memory = np.arange(64, dtype=np.uint32)
    base = address_of(memory)
    registers = {"s4": base & 0xFFFFFFFF, "s5": base >> 32, "s6": 100, "s7": 0x27000}
    registers |= {"v1": LANES * 8, **{f"v{n}": 77 for n in range(4, 8)}}
    body = (
        "buffer_load_dwordx4 v[4:7], v1, s[4:7], 0 offen\n"
        "buffer_load_ushort v8, v1, s[4:7], 0 offen offset:2"
    )
    outcome = execute("gfx942", body, registers=registers, buffers={"x": memory})
    for lane in range(64):
        expected = [2 * lane + n if 8 * lane + 4 * n + 4 <= 100 else 0 for n in range(4)]
        assert [int(outcome.v(4 + n)[0, lane]) for n in range(4)] == expected
    before = memory.copy()
    body = (
        "buffer_store_dwordx4 v[4:7], v1, s[4:7], 0 offen\n"
        "buffer_atomic_add v4, v2, s[4:7], 0 offen sc0"
    )
    registers |= {"v2": np.where(LANES == 0, 0, 400)}
    outcome = execute("gfx942", body, registers=registers, buffers={"x": memory})
    assert (memory[25:] == before[25:]).all()
    assert memory[1:25].tolist() == [77] * 24
    assert memory[0] == 154
    assert outcome.v(4)[0].tolist() == [77] + [0] * 63


def test_scalar_offset_counts_towards_the_end_of_a_buffer():
    memory = np.arange(64, dtype=np.uint32)
    base = address_of(memory)
    registers = {"s4": base & 0xFFFFFFFF, "s5": base >> 32, "s6": 16, "s7": 0x27000, "s8": 12}
    body = "buffer_load_dword v2, v1, s[4:7], s8 offen"
    registers["v1"] = LANES * 4
    outcome = execute("gfx942", body, registers=registers, buffers={"x": memory})
    assert outcome.v(2)[0].tolist() == [3] + [0] * 63


def test_accesses_may_hit_several_buffers():
    a, b = np.arange(32, dtype=np.uint32), np.arange(100, 132, dtype=np.uint32)
    where = np.where(LANES < 32, address_of(a), address_of(b)) + LANES % 32 * 4
    body = (
        "global_load_dword v4, v[2:3], off\nv_add_u32 v5, 1, v4\n"
        "global_store_dword v[2:3], v5, off\nglobal_atomic_add v6, v[2:3], v5, off sc0"
    )
    outcome = execute("gfx942", body, registers={"v[2:3]": where}, buffers={"a": a, "b": b})
    start = np.where(LANES < 32, LANES, LANES + 68)
    assert outcome.v(4)[0].tolist() == start.tolist()
    assert outcome.v(6)[0].tolist() == (start + 1).tolist()
    assert np.concatenate([a, b]).tolist() == (2 * (start + 1)).tolist()


@pytest.mark.parametrize("dwords", [1, 2, 4, 8, 16])
def test_scalar_load(dwords):
    memory = np.arange(1000, 1064, dtype=np.uint32)
    name = "s_load_dword" + (f"x{dwords}" if dwords > 1 else "")
    target = f"s[16:{15 + dwords}]" if dwords > 1 else "s16"
    body = f"{name} {target}, s[4:5], 0x8\n"
    registers = {"s[4:5]": address_of(memory) + np.array([0, 40]), "s8": [6, 13]}
    outcome = execute("gfx942", body, registers=registers, buffers={"x": memory}, waves=2)
    for n in range(dwords):
        assert outcome.s(16 + n).tolist() == [1002 + n, 1012 + n]
    body = f"{name} {target}, s[4:5], s8 offset:0x4"
    outcome = execute("gfx942", body, registers=registers, buffers={"x": memory}, waves=2)
    assert outcome.s(16).tolist() == [1002, 1014]  # the lowest bits do not count


def test_scalar_buffer_load_reads_zero_beyond_the_end():
    memory = np.arange(1000, 1064, dtype=np.uint32)
    base = address_of(memory)
    registers = {"s4": base & 0xFFFFFFFF, "s5": base >> 32, "s6": 24, "s7": 0}
    outcome = execute(
        "gfx942",
        "s_buffer_load_dwordx4 s[16:19], s[4:7], 0x10",
        registers=registers,
        buffers={"x": memory},
    )
    assert [int(outcome.s(n)[0]) for n in range(16, 20)] == [1004, 1005, 0, 0]


GLOBAL_ATOMICS = {
    "add": lambda o, d: o + d,
    "sub": lambda o, d: o - d,
    "umin": min,
    "umax": max,
    "smin": lambda o, d: min(o, d, key=lambda x: x ^ 1 << 31),
    "smax": lambda o, d: max(o, d, key=lambda x: x ^ 1 << 31),
    "and": lambda o, d: o & d,
    "or": lambda o, d: o | d,
    "xor": lambda o, d: o ^ d,
    "inc": lambda o, d: 0 if o >= d else o + 1,
    "dec": lambda o, d: d if o == 0 or o > d else o - 1,
    "swap": lambda o, d: d,
}


@pytest.mark.parametrize("returns", [True, False], ids=["returning", "silent"])
@pytest.mark.parametrize("name", GLOBAL_ATOMICS)
def test_atomics_act_one_lane_after_the_other(name, returns):
    memory = RNG.integers(0, 1 << 32, 8, np.uint64).astype(np.uint32)
    data = RNG.integers(0, 1 << 32, 64, np.uint64)
    if name in ("inc", "dec"):
        memory %= 5
        data %= 5
    expected = memory.tolist()
    registers = {"v1": LANES % 8 * 4, "v2": data, "s[4:5]": address_of(memory)}
    tail = "v1, v2, s[4:5]"
    line = f"global_atomic_{name} v0, {tail} sc0" if returns else f"global_atomic_{name} {tail}"
    outcome = execute("gfx942", line, registers=registers, buffers={"x": memory})
    for lane in range(64):
        old = expected[lane % 8]
        if returns:
            assert outcome.v(0)[0, lane] == old
        expected[lane % 8] = GLOBAL_ATOMICS[name](old, int(data[lane])) & 0xFFFFFFFF
    assert memory.tolist() == expected


def test_atomics_of_64_bits_floats_and_pairs():
    memory = np.zeros(8, np.float64)
    memory[1] = 10
    registers = {
        "v1": 0,
        "v[2:3]": 1 << 32 | 1,
        "v[4:5]": np.full(64, 0.5),
        "v10": np.full(64, 0.25, np.float32),
        "v11": 0x3C004000,
        "v12": 0x3F804000,
        "s[4:5]": address_of(memory),
        "exec": 0xFF,
    }
    body = (
        "global_atomic_add_x2 v[6:7], v1, v[2:3], s[4:5] sc0\n"
        "global_atomic_add_f64 v1, v[4:5], s[4:5] offset:8\n"
        "global_atomic_add_f32 v1, v10, s[4:5] offset:16\n"
        "global_atomic_pk_add_f16 v1, v11, s[4:5] offset:20\n"
        "global_atomic_pk_add_bf16 v1, v12, s[4:5] offset:24\n"
        "global_atomic_max_f64 v1, v[4:5], s[4:5] offset:32"
    )
    outcome = execute("gfx942", body, registers=registers, buffers={"x": memory})
    assert outcome.v64(6)[0, :8].tolist() == [n << 32 | n for n in range(8)]
    assert memory[1] == 14
    assert memory.view(np.float32)[4] == 2
    assert memory.view(np.float16)[10:12].tolist() == [16, 8]
    assert memory.view(np.uint32)[6] == 0x41004180
    assert memory[4] == 0.5


def test_compare_and_swap_takes_the_new_value_first():
    memory = np.array([5, 0], np.uint32)
    compare = np.where(LANES < 32, 5, 6)
    registers = {"v1": 0, "v2": LANES + 5, "v3": compare, "s[4:5]": address_of(memory)}
    line = "global_atomic_cmpswap v0, v1, v[2:3], s[4:5] sc0"
    outcome = execute("gfx942", line, registers=registers, buffers={"x": memory})
    value = 5
    for lane in range(64):
        assert outcome.v(0)[0, lane] == value
        value = lane + 5 if value == compare[lane] else value
    assert memory[0] == value


def test_flat_addresses_reach_lds():
    body = (
        "s_mov_b64 s[6:7], src_shared_base\nv_mov_b32 v3, s7\n"
        "flat_store_dword v[2:3], v1 offset:8\nflat_load_dwordx2 v[4:5], v[2:3] offset:4"
    )
    registers = {"v1": LANES + 5, "v2": LANES * 4}
    outcome = execute("gfx942", body, registers=registers, lds=512)
    words = outcome.lds.view(np.uint32)
    assert words[2:66].tolist() == (LANES + 5).tolist()
    assert outcome.v(5)[0].tolist() == (LANES + 5).tolist()


# ---- straight to LDS -----------------------------------------------------------------------------
DIRECT = "s_mov_b32 m0, 32\nbuffer_load_dword v1, s[4:7], 0 offen lds\n"


def direct(body: str, **options):
    memory = np.arange(1000, 1064, dtype=np.uint32)
    base = address_of(memory)
    registers = {"s4": base & 0xFFFFFFFF, "s5": base >> 32, "s6": 256, "s7": 0x27000}
    registers |= {"v1": (63 - LANES) * 4, "v2": LANES * 4}
    return execute(
        "gfx942", body, registers=registers, buffers={"x": memory}, lds=1024, options=options
    )


def test_a_load_to_lds_lands_at_the_wait():
    read = "ds_read_b32 v3, v2 offset:32\n"
    late = direct(DIRECT + read + "s_waitcnt vmcnt(0)\nds_read_b32 v4, v2 offset:32")
    assert (late.v(3) == 0xA5A5A5A5).all()
    assert late.v(4)[0].tolist() == (1063 - LANES).tolist()
    at_once = direct(DIRECT + read, lazy_dma=False)
    assert at_once.v(3)[0].tolist() == (1063 - LANES).tolist()


def test_a_wait_counts_the_operations_behind():
    more = DIRECT + DIRECT.replace("m0, 32", "m0, 512")
    read = "s_waitcnt vmcnt({n})\nds_read_b32 v3, v2 offset:32\nds_read_b32 v4, v2 offset:512"
    outcome = direct(more + read.format(n=1))
    assert outcome.v(3)[0, 0] == 1063
    assert outcome.v(4)[0, 0] == 0xA5A5A5A5
    outcome = direct(more + read.format(n=0))
    assert outcome.v(4)[0, 0] == 1063
    encoded = (0 & 15) | 0x0F70  # vmcnt(0) as a number
    assert (
        direct(DIRECT + f"s_waitcnt {encoded:#x}\nds_read_b32 v3, v2 offset:32").v(3)[0, 0] == 1063
    )


def test_a_load_to_lds_beyond_the_allocation_is_a_fault():
    with pytest.raises(MemFault, match="direct-to-LDS write at offset 1052"):
        direct(DIRECT.replace("m0, 32", "m0, 800"))


# ---- faults --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("global_load_dword v4, v1, s[4:5]", "load of 4 bytes"),
        ("global_load_dwordx4 v[4:7], v1, s[4:5]", "load of 16 bytes"),
        ("global_store_short v1, v2, s[4:5]", "store of 2 bytes"),
        ("global_atomic_add v1, v2, s[4:5]", "atomic of 4 bytes"),
        ("s_load_dword s16, s[4:5], 0x100", "load of 4 bytes"),
    ],
)
def test_a_fault_names_buffer_and_offset(line, what):
    memory = np.zeros(64, np.uint32)
    registers = {"v1": np.where(LANES == 9, 256, 0), "s[4:5]": address_of(memory)}
    with pytest.raises(MemFault) as caught:
        execute("gfx942", line, registers=registers, buffers={"weights": memory})
    message = str(caught.value)
    assert message.startswith(f"kernel tested: {what} outside every buffer at 0x")
    assert "nearest buffer weights [" in message
    assert "256 bytes: offset 256)" in message
    assert "base s[4:5]: buffer weights, 256 bytes, offset 0" in message
    assert f"at: {line}   [asm line 4]" in message


def test_a_fault_names_the_base_also_where_another_buffer_is_nearer():
    one = np.zeros(1 << 14, np.uint8)
    first, last = one[:64], one[-64:]
    registers = {"v1": (1 << 14) - 80, "s[4:5]": address_of(first)}
    with pytest.raises(MemFault) as caught:
        execute(
            "gfx942",
            "global_load_dword v4, v1, s[4:5]",
            registers=registers,
            buffers={"first": first, "last": last},
        )
    assert "nearest buffer last" in str(caught.value)
    assert "offset -16)" in str(caught.value)
    assert "base s[4:5]: buffer first, 64 bytes, offset 0" in str(caught.value)


def test_the_end_of_a_buffer_is_exact():
    memory = np.zeros(63, np.uint8)
    registers = {"v1": np.where(LANES < 63, LANES, 0), "s[4:5]": address_of(memory)}
    execute(
        "gfx942", "global_load_ubyte v4, v1, s[4:5]", registers=registers, buffers={"x": memory}
    )
    with pytest.raises(MemFault, match="store of 1 bytes outside"):
        registers["v1"] = LANES
        line = "global_store_byte v1, v2, s[4:5]"
        execute("gfx942", line, registers=registers, buffers={"x": memory})


def test_misaligned_atomics_and_scratch_faults():
    memory = np.zeros(64, np.uint32)
    registers = {"v1": 2, "s[4:5]": address_of(memory)}
    with pytest.raises(MemFault, match=r"misaligned atomic at .* offset 2"):
        line = "global_atomic_add v1, v2, s[4:5]"
        execute("gfx942", line, registers=registers, buffers={"x": memory})
    with pytest.raises(
        MemFault, match="scratch access of 4 bytes at offset 62 beyond the 64 bytes"
    ):
        execute("gfx942", "scratch_load_dword v0, v1, off", registers={"v1": 62}, scratch=64)


@pytest.mark.parametrize(
    "line",
    [
        "global_load_dword v4, v1, s[4:5] glc",
        "global_load_dword v4, v1, s[4:5] lds",
        "global_load_dwordx5 v[4:8], v1, s[4:5]",
        "global_atomic_fmin v1, v2, s[4:5]",
        "global_atomic_add_f32_x2 v1, v[2:3], s[4:5]",
        "buffer_load_dword v4, v1, s[4:7], 0 idxen",
        "buffer_load_dword v4, v1, s[4:7], 0 offen tfe",
        "buffer_load_dword v4, v1, s[4:7], 0 offen swz",
        "buffer_store_dword v1, s[4:7], 0 offen lds",
        "buffer_load_format_x v4, v1, s[4:7], 0 offen",
        "s_load_dwordx3 s[16:18], s[4:5], 0",
        "s_load_dword s16, s[4:5], 0 nv",
        "s_store_dword s16, s[4:5], 0",
        "buffer_inv sc0 lds",
        "image_load v0, v1, s[4:11]",
    ],
)
def test_what_is_not_honoured_is_refused(line):
    with pytest.raises(Unsupported):
        execute("gfx942", line, registers={"v1": 0})


def test_swizzled_buffers_are_refused():
    registers = {"v1": 0, "s4": 0, "s5": 1 << 31, "s6": 64, "s7": 0}
    with pytest.raises(Unsupported, match="swizzled"):
        execute("gfx942", "buffer_load_dword v4, v1, s[4:7], 0 offen", registers=registers)
