"""The report as one HTML page: its own style, charts and script; nothing is fetched from anywhere.

Everything that came from a record is escaped: logs and servers may say anything.
"""

import itertools
import re
from collections.abc import Iterable
from html import escape

from vllm_amdopt import __version__
from vllm_amdopt.bench.report.content import (
    Banner,
    Bars,
    Block,
    Bullets,
    Chart,
    Commands,
    Forest,
    Grid,
    Paragraph,
    Report,
    Section,
    Text,
)
from vllm_amdopt.bench.report.style import SCRIPT, STYLE
from vllm_amdopt.bench.report.svg import bars_svg, chart_svg, forest_svg

SYNTHETIC = "Synthetic: these numbers were made up to show the report. Nothing here was measured."

OUTCOMES = (
    "better",
    "regression",
    "equivalent",
    "inconclusive",
    "invalid",
    "passed",
    "failed",
)


def render_html(report: Report) -> str:
    """The whole page."""
    identities = _identities(report.sections)
    body = [
        f"<header><h1>{escape(report.title)}</h1><p>{escape(report.subtitle)}</p></header>",
        f'<div class="synthetic" role="alert">{SYNTHETIC}</div>' if report.synthetic else "",
        *(_banner(banner) for banner in report.banners),
        _contents(report.sections, identities),
        *(
            _section(section, identity)
            for identity, section in zip(identities, report.sections, strict=True)
        ),
        f"<footer>Written by vllm-amdopt {escape(__version__)}. This file needs nothing else."
        "</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing can be fetched, even if something were not escaped.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(body)}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _contents(sections: Iterable[Section], identities: Iterable[str]) -> str:
    """Links to the sections, a line for each record."""
    lines = []
    for group, entries in itertools.groupby(
        zip(sections, identities, strict=True), lambda entry: entry[0].group
    ):
        links = "".join(
            f'<a href="#{identity}">{escape(section.title)}</a>' for section, identity in entries
        )
        name = f"<b>{escape(group)}</b>" if group else ""
        lines.append(f"<div>{name}{links}</div>")
    return f'<nav aria-label="Sections">{"".join(lines)}</nav>'


def _identities(sections: Iterable[Section]) -> list[str]:
    """An anchor for each section: its words, with a number where two have the same."""
    seen: dict[str, int] = {}
    found = []
    for section in sections:
        plain = (
            re.sub(r"[^a-z0-9]+", "-", f"{section.group} {section.title}".lower()).strip("-")
            or "section"
        )
        seen[plain] = seen.get(plain, 0) + 1
        found.append(plain if seen[plain] == 1 else f"{plain}-{seen[plain]}")
    return found


def _banner(banner: Banner) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in banner.facts
    )
    outcome = banner.outcome if banner.outcome in OUTCOMES else "inconclusive"
    return (
        f'<section class="banner {outcome}"><span class="badge">{outcome}</span>'
        f"<h2>{escape(banner.headline)}</h2><p>{escape(banner.sentence)}</p>"
        + (f"<dl>{facts}</dl>" if facts else "")
        + "</section>"
    )


def _section(section: Section, identity: str) -> str:
    parts = []
    for charts, run in itertools.groupby(section.blocks, lambda block: isinstance(block, Chart)):
        drawn = "".join(_block(block) for block in run)
        parts.append(f'<div class="charts">{drawn}</div>' if charts else drawn)
    group = f"<small>{escape(section.group)}</small>" if section.group else ""
    heading = f"<h2>{group}{escape(section.title)}</h2>"
    return f'<section id="{identity}">{heading}{"".join(parts)}</section>'


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f'<p class="{block.tone}">{escape(block.text)}</p>'
    if isinstance(block, Bullets):
        return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in block.lines)}</ul>"
    if isinstance(block, Commands):
        return (
            '<div class="commands"><button type="button" hidden>Copy</button>'
            f"<pre><code>{escape(chr(10).join(block.lines))}</code></pre></div>"
        )
    if isinstance(block, Grid):
        return _grid(block)
    if isinstance(block, Chart):
        arms = dict.fromkeys((series.name, min(series.arm, 3)) for series in block.series)
        return _figure(block.title, chart_svg(block), block.note, _legend(arms))
    if isinstance(block, Bars):
        names = dict.fromkeys(name for bar in block.bars for name, _ in bar.parts)
        legend = "".join(
            f'<span><i class="part{index % 9}"></i>{escape(name)}</span>'
            for index, name in enumerate(names)
        )
        return _figure(block.title, bars_svg(block), "", legend)
    assert isinstance(block, Forest)
    return _figure(block.title, forest_svg(block), block.note, "")


def _legend(arms: Iterable[tuple[str, int]]) -> str:
    return "".join(
        f'<span><i class="arm{arm}{" round" if arm == 0 else ""}"></i>{escape(name)}</span>'
        for name, arm in arms
    )


def _figure(title: str, drawn: str, note: str, legend: str) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        + (f'<div class="legend">{legend}</div>' if legend else "")
        + drawn
        + (f'<p class="note">{escape(note)}</p>' if note else "")
        + "</figure>"
    )


def _grid(grid: Grid) -> str:
    numeric = [any(row[column].numeric for row in grid.rows) for column in range(len(grid.head))]
    head = "".join(
        f'<th scope="col"{_numeric(number)}>{escape(title)}</th>'
        for title, number in zip(grid.head, numeric, strict=True)
    )
    rows = "".join(
        f"<tr>{''.join(_cell(cell, index) for index, cell in enumerate(row))}</tr>"
        for row in grid.rows
    )
    table = (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    note = f'<p class="note">{escape(grid.note)}</p>' if grid.note else ""
    if grid.folded:
        return f"<details><summary>{escape(grid.title)}</summary>{table}{note}</details>"
    return f"<h3>{escape(grid.title)}</h3>{table}{note}"


def _numeric(number: bool) -> str:
    return ' class="number"' if number else ""


def _cell(cell: Text, column: int) -> str:
    kinds = " ".join(kind for kind in (cell.tone, "number" if cell.numeric else "") if kind)
    attribute = f' class="{kinds}"' if kinds else ""
    if column == 0:
        return f'<th scope="row"{attribute}>{escape(cell.text)}</th>'
    return f"<td{attribute}>{escape(cell.text)}</td>"
