"""One-shot all-reduce over memory that all ranks share: one launch, no barrier afterwards.

Each rank has a region that every rank can read and write: peer-mapped GPU memory, or CPU memory
shared between processes. `RegionLayout` says what lies in it. A call is one kernel per rank:

1. copy the own input into one half of the own region (the halves alternate),
2. tell every peer: write the generation (the number of this call) into the peer's flags,
3. wait until every peer has told me the same,
4. read all ranks' halves, add them in rank order in float32, write the result.

Each workgroup has flags of its own and waits only for the workgroup of the same number on the
other ranks, which copied exactly the elements that it will read. So nothing synchronises the whole
grid, and the grid need not fit on the GPU: workgroups start in the order of their numbers
everywhere, hence the lowest unfinished one is running on every rank.

Why two halves and no closing barrier are enough. The danger is that rank p overwrites a half that
rank q still reads. p writes the half of generation g again in generation g + 2. When p's launch
g + 2 starts, its launch g + 1 is over (launches of one rank run one after the other), so some
workgroup of p has seen the flag of generation g + 1 from q. q wrote that flag during its launch
g + 1, so q's launch g is over, and with it all of q's reads of that half. The argument needs one
common workgroup per call, not the same number of them, so calls of any sizes may follow each other.
For the same reason a rank is at most one call ahead of another, and a flag may hold a higher
generation than the one waited for: hence "at least", by signed difference, which survives the
wrap-around of 32 bits.

All ranks add in the same order and round once, so the result has the same bits on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from vllm_amdopt.kernels.variants import Budget, CodegenVariant

MAX_RANKS = 8
MAX_BLOCKS = 256
FLAG_BYTES = MAX_BLOCKS * MAX_RANKS * 4
_HALF_ALIGNMENT = 256

# Words of the private state of a rank, int32.
STATE_WORDS = 4
_GENERATION = tl.constexpr(0)
_TICKET = tl.constexpr(1)
_TIMED_OUT = tl.constexpr(2)
_FENCE = tl.constexpr(3)
TIMED_OUT = 2


@dataclass(frozen=True)
class RegionLayout:
    """A rank's region, sizes in bytes: flags [block][sender] int32, then two halves."""

    max_bytes: int

    @property
    def half_bytes(self) -> int:
        return -(-self.max_bytes // _HALF_ALIGNMENT) * _HALF_ALIGNMENT

    @property
    def region_bytes(self) -> int:
        return FLAG_BYTES + 2 * self.half_bytes


@dataclass(frozen=True)
class LaunchConfig:
    blocks: int
    elements_per_block: int
    num_warps: int


def choose_config(elements: int, element_bytes: int) -> LaunchConfig:
    """16 bytes a lane and 256 lanes a workgroup; beyond MAX_BLOCKS workgroups they loop."""
    elements_per_block = 256 * 16 // element_bytes
    blocks = min(MAX_BLOCKS, -(-elements // elements_per_block))
    return LaunchConfig(max(blocks, 1), elements_per_block, 4)


@triton.jit
def _poll(flags, present, absent):
    # Each of three things is needed to have this load at system scope inside the waiting loop:
    # `volatile` keeps Triton from moving it out, ".cv" keeps LLVM from it (Triton 3.6 forgets the
    # volatility on AMD), and `flags` are numbers turned into pointers lane by lane, because from
    # "pointer + offsets" Triton 3.9 makes an AMD buffer load, which is neither.
    # tests/ops/test_all_reduce_one_shot.py looks for it in the machine code.
    return tl.load(flags, mask=present, other=absent, volatile=True, cache_modifier=".cv")


@triton.jit
def _sum_of_all(regions, half, element_type, offsets, mask, WORLD: tl.constexpr):
    """The elements at `offsets` of all ranks' halves, added in fp32 in the order of the ranks."""
    total = tl.zeros(offsets.shape, tl.float32)
    for p in tl.static_range(WORLD):
        region = regions[p].to(tl.pointer_type(tl.uint8))
        data = (region + half).to(tl.pointer_type(element_type))
        total += tl.load(data + offsets, mask=mask).to(tl.float32)
    return total


@triton.jit
def all_reduce_one_shot_kernel(
    x_ptr,
    out_ptr,
    own_ptr,
    own_address,
    regions,
    state_ptr,
    rank,
    elements,
    half_bytes,
    spin_limit,
    WORLD: tl.constexpr,
    RANK_SLOTS: tl.constexpr,
    FLAG_AREA: tl.constexpr,
    BLOCK: tl.constexpr,
    WAVES_TIMES_64: tl.constexpr,
):
    """x, out [elements]; regions: a tuple of WORLD byte pointers, own_ptr this rank's, own_address
    the same as a number.

    state: int32 [STATE_WORDS], private to the rank. RANK_SLOTS: MAX_RANKS; FLAG_AREA: FLAG_BYTES.
    spin_limit: polls after which a workgroup gives up and sets the state's TIMED_OUT word; the
    generation then stays as it is, so that the same call can be launched again.
    """
    block = tl.program_id(0)
    blocks = tl.num_programs(0)
    generation = tl.load(state_ptr + _GENERATION) + 1
    element_type = x_ptr.dtype.element_ty
    half = FLAG_AREA + (generation & 1).to(tl.int64) * half_bytes
    lane = tl.arange(0, BLOCK)

    # 1. Write-through: on AMD each such store is waited for before the barrier, which itself waits
    # for no store. The release of one wave below would not cover what other waves still have under
    # way.
    own_half = (own_ptr.to(tl.pointer_type(tl.uint8)) + half).to(tl.pointer_type(element_type))
    for start in range(block * BLOCK, elements, blocks * BLOCK):
        offsets = start + lane
        mask = offsets < elements
        values = tl.load(x_ptr + offsets, mask=mask)
        tl.store(own_half + offsets, values, mask=mask, cache_modifier=".wt")

    # 2. One lane per peer publishes, all at once.
    tl.debug_barrier()
    peer = tl.arange(0, RANK_SLOTS)
    peer_region = tl.zeros([RANK_SLOTS], tl.int64)
    for p in tl.static_range(WORLD):
        peer_region = tl.where(peer == p, regions[p].to(tl.int64), peer_region)
    slot = block * RANK_SLOTS
    peer_flag = peer_region.to(tl.pointer_type(tl.int32)) + slot + rank
    present = peer < WORLD
    tl.atomic_xchg(peer_flag, generation, mask=present, sem="release", scope="sys")

    # 3. Polling reads and never writes: a read-modify-write could undo a peer's flag where it is
    # not one indivisible step (the CPU engines).
    own_flag = (own_address + (slot + peer).to(tl.int64) * 4).to(tl.pointer_type(tl.int32))
    behind = tl.max(generation - _poll(own_flag, present, generation))
    polls = 0
    while (behind > 0) & (polls < spin_limit):
        behind = tl.max(generation - _poll(own_flag, present, generation))
        polls += 1
    # So far each wave has polled for itself. One more look, at which all waves of the workgroup
    # take part, gives them one answer: did every peer come?
    member = tl.arange(0, WAVES_TIMES_64)
    at = (slot + member % RANK_SLOTS).to(tl.int64) * 4
    flags = (own_address + at).to(tl.pointer_type(tl.int32))
    behind = tl.max(generation - _poll(flags, member % RANK_SLOTS < WORLD, generation))
    # Nothing read below may come from before the flags were seen.
    tl.atomic_add(state_ptr + _FENCE, 0, sem="acquire", scope="sys")
    tl.debug_barrier()

    # 4. Plain loads, so that those from all peers are under way together (the compiler waits for
    # each ".cv" one): the acquire has dropped what the caches held of two calls ago (LLVM,
    # AMDGPUUsage, "Memory Model gfx942": buffer_inv sc0 sc1). Whole blocks need no mask, which
    # would be a branch around each load.
    whole = elements // BLOCK * BLOCK
    for start in range(block * BLOCK, whole, blocks * BLOCK):
        offsets = start + lane
        total = _sum_of_all(regions, half, element_type, offsets, None, WORLD)
        tl.store(out_ptr + offsets, total.to(element_type))
    if (whole < elements) & (whole // BLOCK % blocks == block):
        offsets = whole + lane
        mask = offsets < elements
        total = _sum_of_all(regions, half, element_type, offsets, mask, WORLD)
        tl.store(out_ptr + offsets, total.to(element_type), mask=mask)

    # The last workgroup of the launch moves the generation on; all others have read it by then.
    if behind > 0:
        tl.store(state_ptr + _TIMED_OUT, 1)
    tl.debug_barrier()
    if tl.atomic_add(state_ptr + _TICKET, 1, sem="acq_rel", scope="gpu") == blocks - 1:
        tl.store(state_ptr + _TICKET, 0)
        if tl.atomic_add(state_ptr + _TIMED_OUT, 0, sem="acquire", scope="gpu") == 0:
            tl.store(state_ptr + _GENERATION, generation)


_BUDGETS: dict[str, dict[str, Budget]] = {
    "all_reduce_one_shot/bf16/2_ranks": {
        "gfx942": Budget(8, full_waits=1),
        "gfx950": Budget(8, full_waits=1),
    },
    "all_reduce_one_shot/bf16/8_ranks": {
        "gfx942": Budget(8, full_waits=1),
        "gfx950": Budget(7, full_waits=1),
    },
    "all_reduce_one_shot/fp16/8_ranks": {
        "gfx942": Budget(8, full_waits=1),
        "gfx950": Budget(8, full_waits=1),
    },
    "all_reduce_one_shot/fp32/8_ranks": {
        "gfx942": Budget(8, full_waits=1),
        "gfx950": Budget(8, full_waits=1),
    },
}


def _variant(dtype: str, element_bytes: int, world_size: int) -> CodegenVariant:
    config = choose_config(1 << 18, element_bytes)
    regions = tuple("*u8" for _ in range(world_size))
    name = f"all_reduce_one_shot/{dtype}/{world_size}_ranks"
    return CodegenVariant(
        name=name,
        kernel=all_reduce_one_shot_kernel,
        signature={
            "x_ptr": f"*{dtype}",
            "out_ptr": f"*{dtype}",
            "own_ptr": "*u8",
            "own_address": "i64",
            "regions": regions,  # type: ignore[dict-item]
            "state_ptr": "*i32",
            "rank": "i32",
            "elements": "i32",
            "half_bytes": "i32",
            "spin_limit": "i32",
        },
        constexprs={
            "WORLD": world_size,
            "RANK_SLOTS": MAX_RANKS,
            "FLAG_AREA": FLAG_BYTES,
            "BLOCK": config.elements_per_block,
            "WAVES_TIMES_64": 64 * config.num_warps,
        },
        num_warps=config.num_warps,
        divisible_by_16=("own_address", "elements", "half_bytes"),
        budgets=_BUDGETS.get(name, {}),
    )


CODEGEN_VARIANTS = (
    _variant("bf16", 2, 2),
    _variant("bf16", 2, 8),
    _variant("fp16", 2, 8),
    _variant("fp32", 4, 8),
)
