"""Tables and paragraphs as plain text or markdown."""

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 120
"""Columns that every rendered table fits into."""


def columns(head: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """Rows as columns two spaces apart; the last column wraps into what is left of `width`."""
    cells = [tuple(row) for row in rows]
    widths = [
        max(len(row[column]) for row in (tuple(head), *cells)) for column in range(len(head) - 1)
    ]
    # Columns of a few words may wrap too, so that the last one keeps at least 40 columns.
    while sum(widths) + 2 * len(widths) > max(width - 40, 20):
        widest = widths.index(max(widths))
        widths[widest] -= 1
    widths.append(width - sum(widths) - 2 * len(widths))
    lines = _row(head, widths)
    lines.append("  ".join("-" * min(size, 60) for size in widths))
    for row in cells:
        lines += _row(row, widths)
    return lines


def _row(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    columns = [
        textwrap.wrap(cell, size, break_on_hyphens=False) or [""]
        for cell, size in zip(cells, widths, strict=True)
    ]
    height = max(len(column) for column in columns)
    return [
        "  ".join(
            (column[line] if line < len(column) else "").ljust(size)
            for column, size in zip(columns, widths, strict=True)
        ).rstrip()
        for line in range(height)
    ]


def wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines)
