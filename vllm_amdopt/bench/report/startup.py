"""What a start-up record shows: seconds by stage, arms side by side, cold and warm apart."""

from collections.abc import Sequence

from vllm_amdopt.bench.analysis import Cell, Comparison
from vllm_amdopt.bench.metrics import STARTUP
from vllm_amdopt.bench.report import words
from vllm_amdopt.bench.report.content import Bar, Bars, Block, Grid, Section, Text, Tone, section

TOTAL = "total_s"
STAGES = STARTUP[: [metric.name for metric in STARTUP].index(TOTAL)]

MODES = {
    "cold": "cold: caches of compiled code empty",
    "warm": "warm: caches filled by an earlier start",
    "disk-cold": "disk-cold: caches filled, weights not in memory",
}


def startup_section(comparison: Comparison) -> Section | None:
    """A table of stages for each mode, and the stages as bars."""
    grids: list[Block | None] = []
    for level in comparison.levels:
        mode = str(level.fields.get("mode", level.label))
        cells = [
            cell
            for metric in STARTUP
            if (cell := comparison.cells.get((level.key, metric.name)))
            and (cell.baseline or cell.candidate)
        ]
        if cells:
            grids.append(_grid(comparison, MODES.get(mode, mode), cells))
    return section("Start-up", [_bars(comparison), *grids] if grids else [])


def _grid(comparison: Comparison, title: str, cells: Sequence[Cell]) -> Grid:
    return Grid(
        title,
        (
            "Stage",
            f"{comparison.baseline} (s)",
            f"{comparison.candidate} (s)",
            "Improvement",
            f"Seconds saved, {100 * comparison.judgement.confidence:g} % interval",
            "Verdict",
        ),
        tuple(_row(cell) for cell in cells),
        note="Improvement is 1 − B/A of the means; the interval is that of the paired difference "
        "in seconds, so that a stage that vanishes has one, too. Each stage is judged alone: of "
        "twenty that did not change, one will seem to.",
    )


def _row(cell: Cell) -> tuple[Text, ...]:
    a, b = cell.baseline, cell.candidate
    change = "–"
    if a is not None and b is not None and a.mean > 0:
        change = words.percent(1 - b.mean / a.mean)
    strong: Tone = "strong" if cell.metric.name == TOTAL else ""
    tone: Tone = "muted"
    said, saved = "inconclusive", "–"
    difference = cell.difference
    if difference is not None:
        saved = f"{-difference.difference:.2f}".replace("-", "−")
        if difference.low is not None and difference.high is not None:
            saved += f" [{-difference.high:.2f}, {-difference.low:.2f}]".replace("-", "−")
            if difference.high < 0:
                tone, said = "good", "better"
            elif difference.low > 0:
                tone, said = "bad", "slower"
            elif difference.low == difference.high == 0:
                said = "equal"
    return (
        Text(cell.metric.label, strong),
        Text("–" if a is None else cell.metric.shown(a.mean), strong, numeric=True),
        Text("–" if b is None else cell.metric.shown(b.mean), strong, numeric=True),
        Text(change, tone, numeric=True),
        Text(saved, tone, numeric=True),
        Text(said, tone),
    )


def _bars(comparison: Comparison) -> Bars | None:
    bars = []
    for level in comparison.levels:
        for index, arm in enumerate(comparison.arms):
            parts = []
            for metric in STAGES:
                values = list(comparison.series(arm, level, metric).values())
                if values:
                    parts.append((metric.label, sum(values) / len(values)))
            if parts:
                name = f"{arm}, {level.fields.get('mode', level.label)}"
                bars.append(Bar(name, index, tuple(parts)))
    return Bars("Start-up by stage", "s", tuple(bars)) if bars else None
