"""The report as Markdown, for a pull request or a terminal; charts become their numbers."""

import re
from collections.abc import Sequence

from vllm_amdopt.bench.report.content import (
    Bars,
    Block,
    Bullets,
    Chart,
    Commands,
    Forest,
    Grid,
    Paragraph,
    Report,
)
from vllm_amdopt.bench.report.page import SYNTHETIC
from vllm_amdopt.policy.text_tables import markdown_table

_SYNTAX = re.compile(r"([\\`*_<>|#~]|(?<=\])[(\[:])")
"""What would be read as Markdown or HTML; brackets only where they would become a link."""


def render_markdown(report: Report, *, folded: bool = True) -> str:
    """The whole text; without what pages show folded, if that is not wanted."""
    lines = [f"# {_plain(report.title)}", "", _plain(report.subtitle), ""]
    if report.synthetic:
        lines += [f"> **{SYNTHETIC}**", ""]
    for banner in report.banners:
        lines += [
            f"**{banner.outcome.upper()}: {_plain(banner.headline)}.** {_plain(banner.sentence)}",
            "",
        ]
        if banner.facts:
            facts = (f"{_plain(name)}: {_plain(value)}" for name, value in banner.facts)
            lines += [" · ".join(facts), ""]
    for section in report.sections:
        blocks = [
            block
            for block in section.blocks
            if folded or not (isinstance(block, Grid) and block.folded)
        ]
        if not blocks:
            continue
        title = f"{section.group}: {section.title}" if section.group else section.title
        lines += [f"## {_plain(title)}", ""]
        for block in blocks:
            lines += [_block(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _plain(text: str) -> str:
    """Text in which nothing is Markdown or HTML."""
    return _SYNTAX.sub(r"\\\1", " ".join(text.split()))


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return _plain(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_plain(line)}" for line in block.lines)
    if isinstance(block, Commands):
        fence = "`" * max(
            3, 1 + max((len(run) for run in re.findall("`+", "".join(block.lines))), default=0)
        )
        return "\n".join([f"{fence}sh", *block.lines, fence])
    if isinstance(block, Grid):
        rows = [[cell.text for cell in row] for row in block.rows]
        return _table(block.title, block.head, rows, block.note)
    if isinstance(block, Chart):
        return _chart(block)
    if isinstance(block, Bars):
        rows = [
            [bar.name, part, f"{amount:.2f}"] for bar in block.bars for part, amount in bar.parts
        ]
        return _table(block.title, ("Bar", "Part", block.unit), rows, "")
    assert isinstance(block, Forest)
    rows = [
        [
            label,
            f"{value:+.2f}",
            "" if low is None or high is None else f"[{low:+.2f}, {high:+.2f}]",
        ]
        for label, value, low, high, _ in block.rows
    ]
    return _table(block.title, ("", block.x_title, "interval"), rows, "")


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    # markdown_table escapes the bars itself.
    cells = [[_plain(cell).replace("\\|", "|") for cell in row] for row in rows]
    table = markdown_table([_plain(name).replace("\\|", "|") for name in head], cells)
    parts = [f"**{_plain(title)}**", table, _plain(note)]
    return "\n\n".join(part for part in parts if part)


def _chart(chart: Chart) -> str:
    rows = [
        [
            series.name,
            point.label or "",
            f"{point.x:,.5g}",
            f"{point.y:,.5g}",
            "" if point.y_range is None else f"[{point.y_range[0]:,.5g}, {point.y_range[1]:,.5g}]",
        ]
        for series in chart.series
        for point in series.points
    ]
    head: tuple[str, ...] = ("Arm", "", chart.x_title, chart.y_title, "interval")
    if not any(row[1] for row in rows):
        rows = [[row[0], *row[2:]] for row in rows]
        head = (head[0], *head[2:])
    return _table(chart.title, head, rows, "")
