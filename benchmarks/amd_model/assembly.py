"""Reads the assembly that the compiler wrote: instructions, basic blocks, loops, the main path.

Knows the text of LLVM's AMDGPU back end, and neither time nor machines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from benchmarks.amd_model import costs

_INSTRUCTION = re.compile(r"(?:v|s|ds|buffer|global|flat|scratch)_\w+")
_ENCODING = re.compile(r"_(?:e32|e64|dpp|sdwa|e64_dpp)$")
_REGISTER = re.compile(r"\b([vas])(\d+)\b|\b([vas])\[(\d+):(\d+)\]")
_METADATA = re.compile(
    r"\s*-?\s*\.(vgpr_count|agpr_count|sgpr_count|vgpr_spill_count|sgpr_spill_count|"
    r"group_segment_fixed_size):\s*(\d+)"
)
_PRELOAD = re.compile(r"\s*\.amdhsa_user_sgpr_kernarg_preload_length\s+(\d+)")
_WRITES_NOTHING = ("store", "wait", "barrier", "branch", "nop", "cache")


@dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction. Registers are written "v7", "a3", "s12"; bytes are those of 64 lanes."""

    name: str
    operands: tuple[str, ...]
    text: str
    kind: costs.Kind
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    bytes: int = 0
    passes: int = 0
    index: int = 0
    """Its place in the program's text; what is taken, and what falls through, follows from it."""
    target: str | None = None
    outstanding_memory: int | None = None
    """vmcnt of an s_waitcnt: so many vector memory operations may still be under way."""
    outstanding_lds: int | None = None
    """lgkmcnt of an s_waitcnt: so many LDS and scalar memory operations may be."""
    for_address: bool = False
    """A load whose result an address is made of: a page-table entry, a sequence length."""

    @property
    def system_scope(self) -> bool:
        """Whether it reaches for memory that another GPU may own."""
        return " sc1" in self.text


@dataclass(frozen=True)
class Program:
    """A kernel's instructions, its labels as indices into them, and what the compiler counted."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    counts: dict[str, int] = field(default_factory=dict)
    entry: int = 0


@cache
def _registers(operand: str) -> tuple[str, ...]:
    found: list[str] = []
    for one, number, several, first, last in _REGISTER.findall(operand):
        if one:
            found.append(one + number)
        else:
            found += [f"{several}{i}" for i in range(int(first), int(last) + 1)]
    return tuple(found)


def _instruction(line: str, index: int) -> Instruction:
    name, _, rest = line.partition(" ")
    name = _ENCODING.sub("", name)
    operands = tuple(part.strip() for part in re.split(r",\s*(?![^\[]*\])", rest)) if rest else ()
    kind = costs.kind(name)
    registers = [_registers(operand) for operand in operands]
    # An LDS write or an atomic that returns nothing names no destination.
    silent = kind in _WRITES_NOTHING or name.startswith(("ds_write", "scratch_store"))
    silent |= kind == "load" and re.search(r"[ _]lds\b|_lds_", line) is not None  # to LDS directly
    silent |= kind == "atomic" and not re.search(r"\bsc0\b", line)
    writes = () if silent or not registers else registers[0]
    reads = tuple(r for group in registers[0 if silent else 1 :] for r in group)
    memory = re.search(r"vmcnt\((\d+)\)", line)
    lds = re.search(r"lgkmcnt\((\d+)\)", line)
    moves = kind in ("load", "store", "atomic", "scratch") or name.startswith(
        ("ds_read", "ds_write")
    )
    return Instruction(
        name=name,
        operands=operands,
        text=line,
        kind=kind,
        reads=reads,
        writes=writes,
        bytes=costs.bytes_moved(name) if moves else 0,
        passes=costs.matrix_passes(name) if kind == "matrix" else 0,
        index=index,
        target=operands[-1].split()[0] if kind == "branch" and operands else None,
        outstanding_memory=int(memory[1]) if kind == "wait" and memory else None,
        outstanding_lds=int(lds[1]) if kind == "wait" and lds else None,
    )


def parse(text: str) -> Program:
    """The program in an assembly listing. ValueError on an instruction of no known kind."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    counts: dict[str, int] = {}
    preloads = False
    for raw in text.splitlines():
        if found := _METADATA.match(raw):
            counts[found[1]] = int(found[2])
        elif found := _PRELOAD.match(raw):
            preloads |= int(found[1]) > 0
        line = " ".join(raw.split(";")[0].split("//")[0].split())
        if found := re.match(r"([.\w$]+):", line):
            labels[found[1]] = len(instructions)
        elif _INSTRUCTION.match(line):
            instructions.append(_instruction(line, len(instructions)))
    entry = 0
    if preloads:
        # Hardware that preloads kernel arguments enters behind a prologue for older hardware.
        for instruction in instructions[:40]:
            if instruction.name == "s_branch":
                entry = labels[instruction.target or ""]
                break
    return Program(tuple(instructions), labels, counts, entry)


@dataclass(frozen=True)
class Block:
    """Instructions [first, last] that run one after the other, and the blocks that may follow."""

    first: int
    last: int
    successors: tuple[int, ...]


def blocks_of(program: Program) -> list[Block]:
    """The basic blocks in the order of the text; successors are indices into the list."""
    code = program.instructions
    starts = {0, program.entry, *program.labels.values()}
    starts |= {i + 1 for i, one in enumerate(code) if one.kind == "branch"}
    ordered = sorted(start for start in starts if start < len(code))
    number = {start: i for i, start in enumerate(ordered)}
    blocks = []
    for i, start in enumerate(ordered):
        last = (ordered[i + 1] if i + 1 < len(ordered) else len(code)) - 1
        ending = code[last]
        successors = []
        if ending.kind == "branch" and ending.target in program.labels:
            successors.append(number.get(program.labels[ending.target], -1))
        if ending.kind != "branch" or ending.name.startswith("s_cbranch"):
            successors.append(number.get(last + 1, -1))
        blocks.append(Block(start, last, tuple(s for s in successors if s >= 0)))
    return blocks


def _components(nodes: set[int], blocks: Sequence[Block]) -> list[set[int]]:
    """Strongly connected components that hold a cycle (Tarjan, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    found = []
    for root in sorted(nodes):
        if root in index:
            continue
        index[root] = low[root] = len(index)
        stack.append(root)
        work = [(root, iter(blocks[root].successors))]
        while work:
            node, successors = work[-1]
            for following in successors:
                if following not in nodes:
                    continue
                if following not in index:
                    index[following] = low[following] = len(index)
                    stack.append(following)
                    work.append((following, iter(blocks[following].successors)))
                    break
                if following in stack:
                    low[node] = min(low[node], index[following])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    cut = stack.index(node)
                    component = set(stack[cut:])
                    del stack[cut:]
                    if len(component) > 1 or node in blocks[node].successors:
                        found.append(component)
    return found


@dataclass(frozen=True)
class Loop:
    """A loop: where it is entered, its blocks, and how many loops it lies within (1: none)."""

    header: int
    members: frozenset[int]
    depth: int


def loops_of(blocks: Sequence[Block]) -> list[Loop]:
    """All loops, outer ones before those inside them."""
    found: list[Loop] = []

    def within(nodes: set[int], depth: int) -> None:
        for component in _components(nodes, blocks):
            outside = [i for i in range(len(blocks)) if i not in component]
            entered = {s for i in outside for s in blocks[i].successors if s in component}
            header = min(entered or component)
            found.append(Loop(header, frozenset(component), depth))
            within(component - {header}, depth + 1)

    within(set(range(len(blocks))), 1)
    return found


def _weight(instructions: Iterable[Instruction]) -> int:
    """How much work lies on a path: what the heaviest one is chosen by."""
    return sum(1 + 2000 * i.passes + i.bytes * (i.kind == "load") for i in instructions)


def _heaviest(
    program: Program, blocks: Sequence[Block], start: int, allowed: set[int], goals: set[int]
) -> list[int]:
    """The path of most work from `start` within `allowed` to a goal, loops taken once; [] if none.

    A goal is a block whose path may end there.
    """
    order: list[int] = []
    seen, open_ = {start}, {start}
    back: set[tuple[int, int]] = set()
    work = [(start, iter(blocks[start].successors))]
    while work:
        node, successors = work[-1]
        for following in successors:
            if following in open_:
                back.add((node, following))
            elif following in allowed and following not in seen:
                seen.add(following)
                open_.add(following)
                work.append((following, iter(blocks[following].successors)))
                break
        else:
            work.pop()
            open_.discard(node)
            order.append(node)
    best: dict[int, tuple[int, int | None]] = {}
    for node in order:
        block = blocks[node]
        own = _weight(program.instructions[block.first : block.last + 1])
        ways: list[tuple[int, int | None]] = [(0, None)] if node in goals else []
        ways += [(best[f][0], f) for f in block.successors if f in best and (node, f) not in back]
        if ways:
            heaviest = max(ways, key=lambda way: way[0])
            best[node] = (own + heaviest[0], heaviest[1])
    if start not in best:
        return []
    path = [start]
    while (further := best[path[-1]][1]) is not None:
        path.append(further)
    return path


@dataclass(frozen=True)
class Trace:
    """What one wave runs: `before`, then `body` once per trip of the main loop, then `after`."""

    before: tuple[Instruction, ...]
    body: tuple[Instruction, ...]
    after: tuple[Instruction, ...]

    def whole(self, trips: int) -> list[Instruction]:
        """The instructions of a wave that goes through the main loop `trips` times."""
        return [*self.before, *(self.body * trips), *self.after]


def trace_of(program: Program) -> Trace:
    """The main path: the heaviest way to the main loop, around it, and from it to the end.

    The main loop is the one that does most per trip: matrix work, then bytes loaded. Of several
    that do as much the shortest is taken, the one without masks; other loops are passed once.
    """
    blocks = blocks_of(program)
    everything = set(range(len(blocks)))
    entry = next(i for i, b in enumerate(blocks) if b.first == program.entry)
    ends = {i for i, b in enumerate(blocks) if not b.successors}

    def code(path: Iterable[int]) -> tuple[Instruction, ...]:
        return tuple(
            i for n in path for i in program.instructions[blocks[n].first : blocks[n].last + 1]
        )

    best: tuple[tuple[int, int, int], Loop, list[int]] | None = None
    for loop in loops_of(blocks):
        latches = {i for i in loop.members if loop.header in blocks[i].successors}
        path = _heaviest(program, blocks, loop.header, set(loop.members), latches)
        body = code(path)
        loaded = sum(i.bytes for i in body if i.kind == "load")
        weight = (sum(i.passes for i in body), loaded, -len(body))
        if path and (best is None or weight > best[0]):
            best = (weight, loop, path)
    if best is None:
        before = code(_heaviest(program, blocks, entry, everything, ends))
        return Trace(_mark_addresses(before), (), ())
    _, loop, path = best
    outside = everything - loop.members
    entering = {i for i in outside if loop.header in blocks[i].successors}
    before_path = _heaviest(program, blocks, entry, outside, entering)
    leaving = {s for i in loop.members for s in blocks[i].successors if s in outside}
    after_paths = [_heaviest(program, blocks, i, outside, ends) for i in leaving]
    after_path = max(after_paths, key=lambda p: _weight(code(p)), default=[])
    before, body, after = code(before_path), code(path), code(after_path)
    marked = _mark_addresses([*before, *body, *body, *after])
    first, second = len(before), len(before) + len(body)
    # of the two trips the first: the second one's prefetched table entries lead nowhere
    return Trace(marked[:first], marked[first:second], marked[second + len(body) :])


def _mark_addresses(code: Sequence[Instruction]) -> tuple[Instruction, ...]:
    """The same instructions, with `for_address` set on loads that a later load's address needs."""
    origin: dict[str, frozenset[int]] = {}
    needed: set[int] = set()
    for i, one in enumerate(code):
        sources = frozenset[int]().union(*(origin.get(r, frozenset()) for r in one.reads))
        if one.kind == "load":
            needed |= sources
            sources = frozenset({i})
        elif one.kind not in ("vector", "scalar"):
            sources = frozenset()
        for register in one.writes:
            origin[register] = sources
    return tuple(replace(one, for_address=i in needed) for i, one in enumerate(code))


def bytes_in_flight(trace: Trace) -> int:
    """The most bytes of data (not of page-table entries) that one wave has on its way at once."""
    queue: list[int] = []
    most = 0
    for one in trace.whole(3):
        if one.kind in ("load", "store", "atomic", "scratch"):
            queue.append(one.bytes if one.kind == "load" and not one.for_address else 0)
            most = max(most, sum(queue))
        elif one.outstanding_memory is not None:
            del queue[: max(0, len(queue) - one.outstanding_memory)]
    return most
