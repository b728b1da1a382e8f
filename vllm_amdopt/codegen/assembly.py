"""Reading the assembly text of one kernel: instructions, main loop, widths, waits. Runs nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_INSTRUCTION = re.compile(r"(?:s|v|ds|global|buffer|flat|scratch)_\w+")
_LABEL = re.compile(r"([.\w$]+):")
_MEMORY = re.compile(r"^(?:global|buffer|flat)_(load|store)(?:_lds)?_(\w+)")
_BITS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "ushort": 16, "sshort": 16}
_BITS |= {"short": 16, "ubyte": 8, "sbyte": 8, "byte": 8}
_MATRIX_SHAPE = re.compile(r"_(\d+)x(\d+)x(\d+)_")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction: its name without the encoding suffix, and the rest of the line."""

    name: str
    operands: str

    @property
    def is_matrix(self) -> bool:
        return self.name.startswith(("v_mfma", "v_smfmac"))

    @property
    def is_shared(self) -> bool:
        """A barrier, or an access to LDS; exchanges between lanes (`ds_bpermute`) are neither."""
        exchange = ("ds_bpermute", "ds_permute", "ds_swizzle")
        return self.name == "s_barrier" or (
            self.name.startswith("ds_") and not self.name.startswith(exchange)
        )

    @property
    def access(self) -> tuple[str, int] | None:
        """("load" or "store", bits per lane) of a vector memory access outside LDS and scratch."""
        found = _MEMORY.match(self.name)
        if found is None:
            return None
        return found[1], _BITS.get(found[2].removesuffix("_hi").removesuffix("_d16"), 0)

    @property
    def waits_for_all_loads(self) -> bool:
        return self.name == "s_waitcnt" and "vmcnt(0)" in self.operands


@dataclass(frozen=True)
class Assembly:
    """The instructions of a kernel in the order of the text, and which of them each label names."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]

    def main_loop(self) -> Sequence[Instruction]:
        """The loop with the most matrix instructions, then the most 128-bit loads; () without one.

        A loop is what lies on a way from the target of a backward branch back to that branch; LLVM
        may have moved parts of it behind code of its own. Of loops with equal counts the innermost
        is the main one.
        """
        ends: dict[int, set[int]] = {}
        for at, following in enumerate(self._successors()):
            for start in following:
                if start <= at:
                    ends.setdefault(start, set()).add(at)
        bodies = [self._between(start, ends[start]) for start in ends]
        bodies = [body for body in bodies if _weight(body) > (0, 0)]
        return max(bodies, key=lambda body: (*_weight(body), -len(body)), default=())

    def _successors(self) -> list[tuple[int, ...]]:
        """For each instruction, the places that may come next."""
        found: list[tuple[int, ...]] = []
        for at, instruction in enumerate(self.instructions):
            following = [at + 1] if at + 1 < len(self.instructions) else []
            if instruction.name in ("s_branch", "s_endpgm"):
                following = []
            if instruction.name.startswith(("s_branch", "s_cbranch")):
                target = self.labels.get(instruction.operands.strip(), len(self.instructions))
                if target < len(self.instructions):
                    following.append(target)
            found.append(tuple(following))
        return found

    def _between(self, start: int, ends: set[int]) -> Sequence[Instruction]:
        """The instructions on the ways from `start` to one of `ends`, in the order of the text."""
        successors = self._successors()
        predecessors: list[list[int]] = [[] for _ in successors]
        for at, following in enumerate(successors):
            for place in following:
                predecessors[place].append(at)
        ahead = _reached({start}, successors, stop=None)
        behind = _reached(ends & ahead, predecessors, stop=start)
        return [self.instructions[i] for i in sorted(ahead & behind)]


def _reached(starts: set[int], following: Sequence[Sequence[int]], stop: int | None) -> set[int]:
    """All places that lead on from `starts`, themselves included; nothing leads on from `stop`."""
    seen, waiting = set(starts), list(starts)
    while waiting:
        at = waiting.pop()
        for place in () if at == stop else following[at]:
            if place not in seen:
                seen.add(place)
                waiting.append(place)
    return seen


def serial_loads(loop: Sequence[Instruction]) -> int:
    """Loads of 128 bits per round that a wait for every load finds alone under way.

    Nothing overlaps the trip to memory of such a load but other waves.
    """
    count = under_way = 0
    for _ in range(2):  # what the end of a round leaves under way is waited for in the next one
        count = 0
        for instruction in loop:
            if instruction.access == ("load", 128):
                under_way += 1
            elif instruction.waits_for_all_loads:
                count += under_way == 1
                under_way = 0
    return count


def _weight(body: Sequence[Instruction]) -> tuple[int, int]:
    return sum(i.is_matrix for i in body), accesses(body, "load")[128]


def parse(text: str) -> Assembly:
    """Read assembly text as LLVM prints it."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        code = line.partition(";")[0].strip()
        label = _LABEL.match(code)
        if label:
            labels[label[1]] = len(instructions)
            continue
        if _INSTRUCTION.match(code):
            name, _, operands = code.partition(" ")
            name = name.removesuffix("_e32").removesuffix("_e64")
            instructions.append(Instruction(name, operands))
    return Assembly(tuple(instructions), labels)


def accesses(body: Iterable[Instruction], kind: str) -> Counter[int]:
    """Bits per lane -> how many loads or stores."""
    found = (instruction.access for instruction in body)
    return Counter(access[1] for access in found if access and access[0] == kind)


def matrix_instructions(body: Iterable[Instruction]) -> Counter[str]:
    """Name without `v_mfma_` -> how many."""
    return Counter(i.name.removeprefix("v_mfma_") for i in body if i.is_matrix)


def matrix_flops(name: str) -> int:
    """Floating-point operations of one matrix instruction of a wave: 2 * M * N * K."""
    found = _MATRIX_SHAPE.search(name + "_")
    if found is None:
        raise ValueError(f"{name!r} names no matrix shape.")
    m, n, k = (int(size) for size in found.groups())
    return 2 * m * n * k


def number(text: str, key: str) -> int:
    """A number of the kernel's metadata, such as `vgpr_count`; 0 where it is not said."""
    found = re.search(rf"^\s*-?\s*\.{key}:\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0
