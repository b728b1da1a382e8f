"""LDS: reads and writes of every width, transposing reads, atomics, faults, poison."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emulator.machine_code import execute, mask_of
from vllm_amdopt.emulator.definitions import MemFault, Unsupported

LANES = np.arange(64)
RNG = np.random.default_rng(0)
CONTENT = RNG.integers(0, 256, 4096, np.uint8)
BYTES = CONTENT.tobytes()


def number(data: bytes | np.ndarray) -> int:
    return int.from_bytes(bytes(data), "little")


READS = {  # name -> (bytes, signed)
    "ds_read_u8": (1, False),
    "ds_read_i8": (1, True),
    "ds_read_u16": (2, False),
    "ds_read_i16": (2, True),
    "ds_read_b32": (4, False),
    "ds_read_b64": (8, False),
    "ds_read_b96": (12, False),
    "ds_read_b128": (16, False),
}


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("name", READS)
def test_read(name, aligned):
    size, is_signed = READS[name]
    address = RNG.permutation(64) * 16 + (0 if aligned else RNG.integers(0, 16, 64))
    count = max(1, size // 4)
    target = f"v[4:{3 + count}]" if count > 1 else "v4"
    line = f"{name} {target}, v1 offset:48"
    outcome = execute("gfx942", line, registers={"v1": address}, lds=BYTES)
    for lane in range(64):
        data = CONTENT[address[lane] + 48 : address[lane] + 48 + size]
        expected = int.from_bytes(bytes(data), "little", signed=is_signed) & ((1 << 32 * count) - 1)
        got = sum(int(outcome.v(4 + n)[0, lane]) << 32 * n for n in range(count))
        assert got == expected


@pytest.mark.parametrize(
    ("name", "size", "is_signed", "high"),
    [
        (f"ds_read_{kind}_d16{suffix}", size, is_signed, bool(suffix))
        for kind, size, is_signed in (("u8", 1, False), ("i8", 1, True), ("u16", 2, False))
        for suffix in ("", "_hi")
    ],
)
def test_read_of_half_a_register(name, size, is_signed, high):
    outcome = execute(
        "gfx942", f"{name} v0, v1", registers={"v0": 0x11112222, "v1": LANES * 2}, lds=BYTES
    )
    for lane in range(64):
        data = CONTENT[2 * lane : 2 * lane + size]
        half = int.from_bytes(bytes(data), "little", signed=is_signed) & 0xFFFF
        expected = half << 16 | 0x2222 if high else 0x11110000 | half
        assert outcome.v(0)[0, lane] == expected


WRITES = {
    "ds_write_b8": (1, 0),
    "ds_write_b8_d16_hi": (1, 16),
    "ds_write_b16": (2, 0),
    "ds_write_b16_d16_hi": (2, 16),
    "ds_write_b32": (4, 0),
    "ds_write_b64": (8, 0),
    "ds_write_b96": (12, 0),
    "ds_write_b128": (16, 0),
}


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("name", WRITES)
def test_write_by_the_enabled_lanes(name, aligned):
    size, shift = WRITES[name]
    address = RNG.permutation(64) * 16 + (0 if aligned else 3)
    data = RNG.integers(0, 1 << 32, (4, 64), np.uint64)
    count = max(1, size // 4)
    source = f"v[4:{3 + count}]" if count > 1 else "v4"
    registers = {"v1": address, "exec": mask_of(LANES[LANES % 3 > 0])}
    registers |= {f"v{4 + n}": data[n] for n in range(4)}
    outcome = execute("gfx942", f"{name} v1, {source} offset:32", registers=registers, lds=BYTES)
    expected = CONTENT.copy()
    for lane in LANES[LANES % 3 > 0]:
        value = sum(int(data[n, lane]) << 32 * n for n in range(4)) >> shift
        at = address[lane] + 32
        raw = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        expected[at : at + size] = np.frombuffer(raw, np.uint8)
    assert (outcome.lds == expected).all()


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("stride", ["", "st64"])
def test_two_addresses_at_once(size, stride):
    unit = size * (64 if stride else 1)
    second, offsets = (2, "offset0:1 offset1:3") if size == 4 else (4, "offset0:1 offset1:2")
    place = [int(part.split(":")[1]) * unit for part in offsets.split()]
    width = size * 8
    last = 2 * size // 4 - 1
    pair = (f"v[4:{4 + size // 4 - 1}]", f"v[{4 + size // 4}:{4 + last}]")
    pair = tuple(name if size == 8 else f"v{4 + n}" for n, name in enumerate(pair))
    address = LANES * size
    line = f"ds_read2{stride}_b{width} v[4:{4 + last}], v1 {offsets}"
    outcome = execute("gfx942", line, registers={"v1": address}, lds=BYTES)
    for lane in range(64):
        for which in range(2):
            at = address[lane] + place[which]
            got = sum(
                int(outcome.v(4 + which * size // 4 + n)[0, lane]) << 32 * n
                for n in range(size // 4)
            )
            assert got == number(CONTENT[at : at + size])
    address = LANES * size * second
    registers = {"v1": address} | {f"v{4 + n}": LANES + 1000 * n for n in range(4)}
    line = f"ds_write2{stride}_b{width} v1, {pair[0]}, {pair[1]} offset0:0 offset1:1"
    outcome = execute("gfx942", line, registers=registers, lds=8192)
    expected = np.full(8192, 0xA5, np.uint8)  # poison
    for which in range(2):
        for lane in range(64):
            at = address[lane] + which * unit
            raw = b"".join(
                int(lane + 1000 * (which * size // 4 + n)).to_bytes(4, "little")
                for n in range(size // 4)
            )
            expected[at : at + size] = np.frombuffer(raw, np.uint8)
    assert (outcome.lds == expected).all()


def test_a_read_of_two_may_overwrite_its_address():
    outcome = execute(
        "gfx942", "ds_read2_b32 v[1:2], v1 offset1:1", registers={"v1": LANES * 8}, lds=BYTES
    )
    words = CONTENT.view(np.uint32)
    assert (outcome.v(1)[0] == words[LANES * 2]).all()
    assert (outcome.v(2)[0] == words[LANES * 2 + 1]).all()


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_transposing_read(bits):
    """In each row of 16 lanes, lane c receives element (r, c) of the matrix whose element
    r * 16 + c is that far behind in what the lanes of the row read, lane after lane."""
    address = LANES * 8
    line = f"ds_read_b64_tr_b{bits} v[4:5], v1"
    outcome = execute("gfx950", line, registers={"v1": address}, lds=BYTES)
    single = np.unpackbits(CONTENT[: 64 * 8], bitorder="little").reshape(4, -1, bits)
    elements = (single.astype(np.int64) << np.arange(bits)).sum(-1)  # (row of lanes, element)
    for lane in range(64):
        group, column = divmod(lane, 16)
        expected = sum(int(elements[group, r * 16 + column]) << bits * r for r in range(64 // bits))
        assert int(outcome.v64(4)[0, lane]) == expected


def test_transposing_read_of_six_bits():
    outcome = execute(
        "gfx950", "ds_read_b96_tr_b6 v[4:6], v1", registers={"v1": LANES * 12}, lds=BYTES
    )
    single = np.unpackbits(CONTENT[: 64 * 12], bitorder="little").reshape(4, -1, 6)
    elements = (single.astype(np.int64) << np.arange(6)).sum(-1)
    for lane in (0, 7, 40, 63):
        group, column = divmod(lane, 16)
        expected = sum(int(elements[group, r * 16 + column]) << 6 * r for r in range(16))
        got = sum(int(outcome.v(4 + n)[0, lane]) << 32 * n for n in range(3))
        assert got == expected


ATOMICS = {
    "add_u32": lambda o, d: o + d,
    "sub_u32": lambda o, d: o - d,
    "min_u32": min,
    "max_u32": max,
    "min_i32": lambda o, d: min(o, d, key=lambda x: x ^ 0x80000000),
    "max_i32": lambda o, d: max(o, d, key=lambda x: x ^ 0x80000000),
    "and_b32": lambda o, d: o & d,
    "or_b32": lambda o, d: o | d,
    "xor_b32": lambda o, d: o ^ d,
    "inc_u32": lambda o, d: 0 if o >= d else o + 1,
    "dec_u32": lambda o, d: d if o == 0 or o > d else o - 1,
    "wrxchg_b32": lambda o, d: d,
}


@pytest.mark.parametrize("returns", [True, False], ids=["returning", "silent"])
@pytest.mark.parametrize("name", ATOMICS)
def test_atomics_act_one_lane_after_the_other(name, returns):
    """Eight places, eight lanes each: the old values show the order."""
    if name == "wrxchg_b32" and not returns:
        return  # the instruction set has none
    address, data = LANES % 8 * 4, RNG.integers(0, 1 << 32, 64, np.uint64)
    if name in ("inc_u32", "dec_u32"):
        data = RNG.integers(0, 5, 64, np.uint64)
    base, bits = name.rsplit("_", 1)
    line = f"ds_{base}_rtn_{bits} v0, v1, v2" if returns else f"ds_{name} v1, v2"
    start = RNG.integers(0, 1 << 32, 8, np.uint64).astype(np.uint32)
    if name in ("inc_u32", "dec_u32"):
        start %= 5
    registers = {"v1": address, "v2": data}
    outcome = execute("gfx942", line, registers=registers, lds=start.tobytes())
    memory = start.tolist()
    for lane in range(64):
        old = memory[lane % 8]
        if returns:
            assert outcome.v(0)[0, lane] == old
        memory[lane % 8] = ATOMICS[name](old, int(data[lane])) & 0xFFFFFFFF
    assert outcome.lds.view(np.uint32).tolist() == memory


def test_atomics_of_64_bits_floats_and_pairs():
    lds = np.zeros(6, np.float64)
    lds[2:4] = 10
    body = (
        "ds_add_u64 v1, v[2:3]\nds_add_rtn_u64 v[6:7], v1, v[2:3] offset:8\n"
        "ds_add_f64 v1, v[4:5] offset:16\nds_max_rtn_f64 v[8:9], v1, v[4:5] offset:24\n"
        "ds_add_f32 v1, v10 offset:32\nds_pk_add_f16 v1, v11 offset:36\n"
        "ds_pk_add_bf16 v1, v12 offset:40"
    )
    registers = {
        "v1": 0,
        "v[2:3]": 1 << 32 | 1,
        "v[4:5]": np.full(64, 0.5),
        "v10": np.full(64, 0.25, np.float32),
        "v11": 0x3C004000,  # 2, 1
        "v12": 0x3F804000,  # 2, 1
        "exec": 0xFF,
    }
    outcome = execute("gfx942", body, registers=registers, lds=lds.tobytes())
    after = outcome.lds
    assert after.view(np.uint64)[:2].tolist() == [8 << 32 | 8] * 2
    assert outcome.v64(6)[0, :8].tolist() == [n << 32 | n for n in range(8)]
    assert after.view(np.float64)[2:4].tolist() == [14, 10]
    assert outcome.v64(8).view(np.float64)[0, :8].tolist() == [10] * 8
    assert after.view(np.float32)[8] == 2
    assert after.view(np.float16)[18:20].tolist() == [16, 8]
    assert after.view(np.uint32)[10] == 0x41004180  # 8 and 16 in bf16


def test_compare_and_swap():
    compare = np.where(LANES < 32, 5, 6)
    registers = {"v1": 0, "v2": compare, "v3": LANES + 5}
    start = np.array([5], np.uint32).tobytes()
    outcome = execute("gfx942", "ds_cmpst_rtn_b32 v0, v1, v2, v3", registers=registers, lds=start)
    memory = 5
    for lane in range(64):
        assert outcome.v(0)[0, lane] == memory
        memory = lane + 5 if memory == compare[lane] else memory
    assert outcome.lds.view(np.uint32)[0] == memory


def test_registers_and_lds_begin_poisoned():
    outcome = execute("gfx942", "ds_read_b32 v0, v1", registers={"v1": LANES * 4}, lds=256)
    assert (outcome.v(0) == 0xA5A5A5A5).all()
    outcome = execute("gfx942", "v_add_f32 v0, v1, v2\ns_mov_b32 s0, s7", registers={"v2": 0})
    assert np.isnan(outcome.v(0).view(np.float32)).all()
    assert np.isnan(outcome.s(0).view(np.float32)).all()


@pytest.mark.parametrize(
    ("line", "address", "message"),
    [
        ("ds_read_b32 v0, v1", 253, "LDS access of 4 bytes at offset 253 beyond the 256 bytes"),
        ("ds_write_b128 v1, v[4:7] offset:16", 240, "LDS access of 16 bytes at offset 256"),
        ("ds_read2st64_b32 v[4:5], v1 offset1:1", 4, "LDS access of 4 bytes at offset 260"),
        ("ds_add_u32 v1, v2", 256, "LDS access of 4 bytes at offset 256"),
        ("ds_add_u32 v1, v2", 2, "misaligned LDS atomic"),
        ("ds_read_b64_tr_b16 v[4:5], v1", 256, "LDS access of 8 bytes at offset 256"),
    ],
)
def test_access_beyond_the_allocation_is_a_fault(line, address, message):
    with pytest.raises(MemFault, match=message) as caught:
        execute("gfx950", line, registers={"v1": address}, lds=256)
    assert f"at: {line}" in str(caught.value)
    # a disabled lane may point anywhere
    execute("gfx950", line, registers={"v1": address, "exec": 0}, lds=256)


@pytest.mark.parametrize(
    "line",
    [
        "ds_read_b32 v0, v1 gds",
        "ds_read2_b32 v[0:1], v1 offset:8",
        "ds_read_b32 v0, v1 offset0:8",
        "ds_add_u32 v1, v2 sc0",
        "ds_append v0",
        "ds_read_addtid_b32 v0",
        "ds_cmpst_b32 v1, v2",
    ],
)
def test_what_is_not_honoured_is_refused(line):
    with pytest.raises(Unsupported):
        execute("gfx942", line, lds=256)


def test_transposing_reads_belong_to_gfx950_and_whole_rows():
    with pytest.raises(Unsupported, match="ds_read_b64_tr_b16"):
        execute("gfx942", "ds_read_b64_tr_b16 v[4:5], v1", registers={"v1": 0}, lds=256)
    with pytest.raises(Unsupported, match="partially masked"):
        execute(
            "gfx950",
            "ds_read_b64_tr_b16 v[4:5], v1",
            registers={"v1": 0, "exec": 1},
            lds=256,
        )
