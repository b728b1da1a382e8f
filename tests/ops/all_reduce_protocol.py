"""What the machine code of the one-shot all-reduce has to hold, in which order; no tests here.

The emulator runs waves in step and knows no caches, so what only matters between waves at different
places, or between GPUs, is looked for in the text. `kernels/all_reduce_one_shot.py` says why each
point is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator


def violations(text: str, ranks: int) -> list[str]:
    """What is missing in the assembly text of the kernel for `ranks` ranks, one sentence each."""
    lines = [line.strip() for line in text.splitlines()]
    code = [line for line in lines if re.match(r"^(s|v|ds|global|buffer|flat)_\w+", line)]
    try:
        return list(_violations(code, ranks))
    except LookupError as error:
        return [f"a step of the protocol is not there at all: {error}"]


def _first(code: list[str], start: str, after: int = 0) -> int:
    found = next((i for i in range(after, len(code)) if code[i].startswith(start)), None)
    if found is None:
        raise LookupError(start)
    return found


def _barrier_between(code: list[str], first: int, last: int) -> bool:
    return "s_barrier" in code[first:last]


def _violations(code: list[str], ranks: int) -> Iterator[str]:
    flag = _first(code, "global_atomic_swap")
    fence = _first(code, "buffer_inv sc0 sc1", flag)
    _first(code, "global_load_dwordx4", fence)
    peers = [i for i in range(fence, len(code)) if code[i].startswith("global_load_dwordx4")]
    ticket = _first(code, "global_atomic_add", peers[-1])
    # Payload: 16 bytes a lane, written through to memory, each store done before the barrier.
    stores = [i for i in range(flag) if re.match(r"(global|buffer)_store", code[i])]
    if not stores:
        yield "the own input is not copied before the flag."
        return
    for i in stores:
        if "_store_dwordx4" not in code[i]:
            yield f"the own input is not copied 16 bytes a lane: {code[i]}"
        if "sc0 sc1" not in code[i]:
            yield f"the own input is not written through: {code[i]}"
        if "vmcnt(0)" not in code[i + 1]:
            yield f"nothing waits for the store of the own input: {code[i]}"
    if not _barrier_between(code, stores[-1], flag):
        yield "the flag is raised before all waves have copied."
    # The flag: a release at system scope.
    if "sc1" not in code[flag]:
        yield f"the flag is not written at system scope: {code[flag]}"
    if not any(line.startswith("buffer_wbl2 sc0 sc1") for line in code[stores[-1] : flag]):
        yield "what was written is not released to the system before the flag."
    # Polling: a load at system scope inside a loop, never a buffer load, which may be cached.
    polls = [line for line in code[flag:fence] if re.match(r"(global|buffer)_load", line)]
    if len(polls) < 3:
        yield "the flags are polled fewer than three times: before, in and after the loop."
    for line in polls:
        if not re.match(r"global_load_dword .* sc0 sc1", line):
            yield f"the flags are not polled at system scope: {line}"
    if not _barrier_between(code, fence, peers[0]):
        yield "waves read the peers' data before the one that saw the flags has looked."
    # Peers' data, of whole blocks first: 16 bytes a lane, all under way together, and none before
    # the invalidation has dropped what the caches held of two calls ago.
    if len(peers) < ranks:
        yield f"only {len(peers)} of {ranks} ranks' data is read 16 bytes a lane."
    together = code[peers[0] : peers[min(ranks, len(peers)) - 1]]
    if any("vmcnt" in line for line in together):
        yield "one peer's data is waited for before the next is asked for."
    for line in code[flag:fence]:
        if "_load_dwordx4" in line:
            yield f"a peer's data is read before the caches are invalidated: {line}"
    if not _barrier_between(code, peers[-1], ticket):
        yield "the workgroup says that it is done before all its waves are."
