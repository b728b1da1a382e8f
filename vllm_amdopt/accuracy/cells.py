"""What a replay asks of the engine: batches of prompts of exact lengths, cut from texts.

No engine is touched here. A cell is written as on the command line: `8x128` are eight requests of
128 prompt tokens at once; `8x128+2x2048` lets two longer ones join while the eight decode, so that
one step of the engine holds both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_GROUP = re.compile(r"([0-9]{1,6})x([0-9]{1,8})")


@dataclass(frozen=True)
class Group:
    """Requests that are added to the engine together."""

    requests: int
    context: int


@dataclass(frozen=True)
class Cell:
    """One row of the report; further groups join when all before them decode."""

    groups: tuple[Group, ...]

    @property
    def name(self) -> str:
        return "+".join(f"{group.requests}x{group.context}" for group in self.groups)

    @property
    def requests(self) -> int:
        return sum(group.requests for group in self.groups)

    @property
    def contexts(self) -> tuple[int, ...]:
        """The prompt length of each request, in the order in which they are added."""
        return tuple(group.context for group in self.groups for _ in range(group.requests))


def parse_cells(text: str) -> tuple[Cell, ...]:
    """The cells of a comma list; ValueError with a sentence for anything else."""
    cells: dict[str, Cell] = {}
    for part in (part.strip() for part in text.split(",")):
        groups = []
        for piece in part.split("+"):
            found = _GROUP.fullmatch(piece.strip())
            if found is None or "0" in (found[1].lstrip("0") or "0", found[2].lstrip("0") or "0"):
                raise ValueError(
                    f"--cells: {part!r} is not a cell; write REQUESTSxCONTEXT, for example 8x128, "
                    "or 8x128+2x2048 for longer prompts that join while the others decode"
                )
            groups.append(Group(int(found[1]), int(found[2])))
        cell = Cell(tuple(groups))
        cells.setdefault(cell.name, cell)
    return tuple(cells.values())


def positions(cells: Iterable[Cell], tokens: int) -> int:
    """How many next-token distributions the cells give, at `tokens` for each request."""
    return sum(cell.requests * tokens for cell in cells)


def prompts_of_length(
    sources: Sequence[Sequence[int]], lengths: Sequence[int], first: int = 0
) -> Iterator[list[int]]:
    """Prompts of exactly `lengths` tokens: whole texts one behind the other, cut at the front.

    The end of each prompt is the end of a text, so that a model that was trained on the texts has
    something to answer. Each prompt ends in another text, beginning with number `first`.
    """
    usable = [list(source) for source in sources if source]
    if not usable:
        raise ValueError("the prompts hold no token; give texts that the tokenizer knows")
    for number, length in enumerate(lengths):
        position = (first + number) % len(usable)
        prompt = usable[position]
        while len(prompt) < length:
            position = (position - 1) % len(usable)
            prompt = usable[position] + prompt
        yield prompt[len(prompt) - length :]
