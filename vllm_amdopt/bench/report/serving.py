"""What a serving record shows in words and tables: the verdict, metrics by level, spread."""

from vllm_amdopt.bench.analysis import Analysis, Cell, Comparison
from vllm_amdopt.bench.levels import LOADS, Level
from vllm_amdopt.bench.metrics import ALL, SERVING
from vllm_amdopt.bench.report import words
from vllm_amdopt.bench.report.content import (
    Banner,
    Block,
    Forest,
    Grid,
    Paragraph,
    Section,
    Text,
    section,
)
from vllm_amdopt.bench.statistics import blocks_needed

OVERVIEW = (
    "request_throughput",
    "output_throughput",
    "total_token_throughput",
    "mean_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
    "mean_itl_ms",
    "p99_itl_ms",
    "mean_e2el_ms",
)

# --- the verdict --------------------------------------------------------------------------------


def banner(analysis: Analysis, comparison: Comparison) -> Banner:
    """The verdict on one candidate, from its primary metric and gates."""
    identical = analysis.record.kind == "serving_aa"
    candidate, baseline = comparison.candidate, comparison.baseline
    if comparison.unsupported:
        reason = f"{comparison.unsupported}."
        return Banner("inconclusive", f"{candidate} was left out", reason, ())
    margin = words.percent(comparison.judgement.margin).lstrip("+")
    headline = {
        "better": f"{candidate} is better than {baseline}",
        "regression": f"{candidate} is worse than {baseline}",
        "equivalent": f"{candidate} and {baseline} are equivalent within ±{margin}",
        "inconclusive": f"No conclusion about {candidate} against {baseline}",
        "invalid": f"{candidate} against {baseline}: nothing was measured that could be judged",
    }[comparison.outcome]
    if identical and comparison.outcome in ("better", "regression"):
        headline = "Identical arms differ: this measurement cannot be trusted"
    elif identical and comparison.outcome != "invalid":
        headline = "Identical arms do not differ"
    return Banner(
        "invalid"
        if identical and comparison.outcome in ("better", "regression")
        else comparison.outcome,
        headline,
        _sentence(comparison),
        tuple(_facts(analysis, comparison)),
    )


def banner_of_many(analysis: Analysis) -> Banner:
    """One verdict on several candidates; `arms_table` has a line for each."""
    baseline = analysis.record.arms[0].name
    groups: dict[str, list[str]] = {}
    for comparison in analysis.comparisons:
        said = "left out" if comparison.unsupported else comparison.outcome
        groups.setdefault(said, []).append(comparison.candidate)
    sentence = "; ".join(f"{said}: {words.listed(names)}" for said, names in groups.items())
    headline = f"{len(analysis.comparisons)} arms against {baseline}"
    return Banner(analysis.outcome, headline, f"{sentence}.")


def arms_table(analysis: Analysis) -> Section | None:
    """The primary metric of every candidate against the baseline."""
    rows = []
    for comparison in analysis.comparisons:
        cells = comparison.primary
        if comparison.unsupported or comparison.invalid or not cells:
            why = comparison.unsupported or comparison.invalid
            rows.append((Text(comparison.candidate), Text(""), Text(""), Text(""), Text(why)))
            continue
        for cell in cells:
            change = cell.improvement
            tone = words.tone_of(cell)
            ends = "" if change is None else words.interval(change.low, change.high)
            rows.append(
                (
                    Text(comparison.candidate),
                    Text("–" if change is None else words.percent(change.value), tone, True),
                    Text(ends, tone, numeric=True),
                    Text(words.p_value(cell), numeric=True),
                    Text(cell.verdict or "", tone),
                )
            )
    head = ("Arm", "Improvement", "interval", "p", "Verdict")
    title = f"{analysis.record.judgement.primary}, against {analysis.record.arms[0].name}"
    note = "Each line is judged alone: with many arms one will look better or worse by chance."
    return section("Arms", [Grid(title, head, tuple(rows), note)] if rows else [])


def _sentence(comparison: Comparison) -> str:
    if comparison.invalid:
        return f"{comparison.invalid}."
    said = [
        f"{cell.name}: {words.improvement(cell)}"
        + (f", {cell.verdict}" if len(comparison.primary) > 1 else "")
        for cell in comparison.primary
    ]
    blocks = words.counted(comparison.blocks, "block")
    confidence = f"{100 * comparison.judgement.confidence:g} %"
    text = "; ".join(said) + f" ({confidence} interval over {blocks}, each with its own launches)."
    worse = [cell.name for cell in comparison.gates if cell.verdict == "regression"]
    if worse:
        text += f" Regression in {words.listed(worse)}."
    if comparison.outcome == "inconclusive":
        text += _why_inconclusive(comparison)
    return text


def _why_inconclusive(comparison: Comparison) -> str:
    cell = next((cell for cell in comparison.primary if cell.verdict == "inconclusive"), None)
    if cell is None or cell.improvement is None or cell.improvement.low is None:
        return " One block has no interval: measure more."
    high = cell.improvement.high
    if high is not None and high < 0:
        return " It is worse, and by more or less than the margin is open."
    return " The interval reaches beyond no difference and the margin: measure more blocks."


def _facts(analysis: Analysis, comparison: Comparison) -> list[tuple[str, str]]:
    rows = [row for row in analysis.record.rows if row.arm in comparison.arms]
    good = [row for row in rows if row.status == "ok"]
    facts = [("Runs that count", f"{len(good)} of {len(rows)}")]
    completed = sum(row.metrics.get("completed", 0) for row in good)
    failed = sum(row.metrics.get("failed", 0) for row in good)
    if completed:
        share = f"{completed:,.0f} of {completed + failed:,.0f}"
        facts.append(("Successful requests", f"all {completed:,.0f}" if not failed else share))
    for cell in comparison.primary[:1]:
        if cell.effect is not None and cell.effect.detectable is not None:
            detectable = words.percent(cell.effect.detectable - 1).lstrip("+")
            facts.append(("Smallest change this could see", f"±{detectable}"))
        facts.append(("p", words.p_value(cell)))
    if comparison.gates:
        kept = sum(cell.verdict != "regression" for cell in comparison.gates)
        facts.append(("Gates kept", f"{kept} of {len(comparison.gates)}"))
    for arm, index in zip(comparison.arms, ("baseline", "candidate"), strict=True):
        cells = (
            comparison.cells.get((level.key, comparison.primary_metric.name))
            for level in comparison.levels
        )
        known = [getattr(cell, index) for cell in cells if cell is not None]
        spread = [one.variation for one in known if one is not None and one.variation]
        if spread:
            facts.append((f"Largest CoV, {arm}", f"{100 * max(spread):.1f} %"))
    return facts


# --- tables -------------------------------------------------------------------------------------


def overview(comparison: Comparison) -> Section | None:
    """Improvements of the usual metrics by level, and the primary metric as a picture."""
    metrics = [metric for name in OVERVIEW if (metric := ALL[name]) in comparison.metrics]
    several = len({level.group for level in comparison.levels}) > 1
    head = [level.label if several else level.short_label for level in comparison.levels]
    rows = []
    for metric in metrics:
        cells = [comparison.cell(level, metric) for level in _with_all(comparison)]
        rows.append((Text(metric.title), *(_effect_cell(cell) for cell in cells)))
    load = next((level.load_name for level in comparison.levels if level.load_name), None)
    grid = Grid(
        "Improvement by level",
        ("Metric", *head, *(["all levels"] if len(head) > 1 else [])),
        tuple(rows),
        note=(f"Columns: {LOADS[load]}. " if load and not several else "")
        + "Green and red are proven by their intervals; grey is not. The metric that was declared "
        f"before the run is {comparison.judgement.primary}; what is neither it nor gated is "
        "exploratory.",
    )
    return section("Overview", [_forest(comparison), grid if rows else None])


def _with_all(comparison: Comparison) -> tuple[Level | None, ...]:
    """The levels, and None for all of them where there are several."""
    return (*comparison.levels, None) if len(comparison.levels) > 1 else comparison.levels


def _effect_cell(cell: Cell) -> Text:
    if cell.improvement is None:
        return Text("–", "muted", numeric=True)
    digits = 2 if abs(cell.improvement.value) < 0.01 else 1
    return Text(words.percent(cell.improvement.value, digits), words.tone_of(cell), numeric=True)


def _forest(comparison: Comparison) -> Forest | None:
    metric = comparison.primary_metric
    rows = []
    single = len({level.group for level in comparison.levels}) == 1
    for level in _with_all(comparison):
        cell = comparison.cells.get((None if level is None else level.key, metric.name))
        if cell is None or cell.improvement is None:
            continue
        change = cell.improvement
        label = "all levels" if level is None else level.load_label if single else level.label
        rows.append(
            (
                label,
                100 * change.value,
                None if change.low is None else 100 * change.low,
                None if change.high is None else 100 * change.high,
                words.tone_of(cell),
            )
        )
    if not rows:
        return None
    return Forest(
        f"{metric.label}: improvement of {comparison.candidate} over {comparison.baseline}",
        "improvement, %",
        tuple(rows),
        100 * comparison.judgement.margin,
        note="Bars: intervals over blocks. Band: the margin.",
    )


def metric_tables(comparison: Comparison) -> Section | None:
    """The table that published comparisons show, one for each level."""
    primary = {cell.level.key for cell in comparison.primary if cell.level is not None}
    grids: list[Block] = []
    for index, level in enumerate(comparison.levels):
        rows = [
            _metric_row(comparison.cell(level, metric))
            for metric in SERVING
            if metric in comparison.metrics
            and (cell := comparison.cell(level, metric))
            and (cell.baseline or cell.candidate)
        ]
        if not rows:
            continue
        grids.append(
            Grid(
                level.label,
                (
                    "Metric",
                    comparison.baseline,
                    comparison.candidate,
                    "Improvement",
                    f"{100 * comparison.judgement.confidence:g} % interval",
                    "p",
                    "Verdict",
                ),
                tuple(rows),
                folded=level.key not in primary if primary else index > 0,
            )
        )
    lead = Paragraph(
        "Means over blocks. Improvement is B/A − 1 for throughput and 1 − B/A for times, from the "
        "geometric mean of the paired ratios, so it may differ in the last digit from the ratio "
        "of the means."
    )
    return section("Metrics", [lead, *grids] if grids else [])


def _metric_row(cell: Cell) -> tuple[Text, ...]:
    change = cell.improvement
    digits = 2 if change is not None and abs(change.value) < 0.01 else 1
    tone = words.tone_of(cell)
    return (
        Text(cell.metric.title),
        Text(words.mean(cell.baseline, cell), numeric=True),
        Text(words.mean(cell.candidate, cell), numeric=True),
        Text("" if change is None else words.percent(change.value, digits), tone, numeric=True),
        Text(
            "" if change is None else words.interval(change.low, change.high, digits),
            tone,
            numeric=True,
        ),
        Text("" if change is None else words.p_value(cell), numeric=True),
        Text(cell.verdict or cell.missing, tone),
    )


def spread_table(comparison: Comparison) -> Section | None:
    """How much single runs vary, what that allows to see, and what is robust."""
    metric = comparison.primary_metric
    rows = []
    for level in comparison.levels:
        cell = comparison.cells.get((level.key, metric.name))
        if cell is None or cell.effect is None:
            continue
        effect = cell.effect
        variations = [
            known.variation
            for known in (cell.baseline, cell.candidate)
            if known and known.variation
        ]
        try:
            needed = str(blocks_needed(max(variations), 0.01)) if variations else "–"
        except ValueError:
            needed = "> 100,000"
        detectable = "–" if effect.detectable is None else f"±{100 * (effect.detectable - 1):.1f} %"
        shift = words.interval(
            None if effect.shift_low is None else effect.shift_low - 1,
            None if effect.shift_high is None else effect.shift_high - 1,
        )
        rows.append(
            (
                Text(level.label),
                Text(str(effect.n), numeric=True),
                Text(words.variation(cell.baseline), numeric=True),
                Text(words.variation(cell.candidate), numeric=True),
                Text(detectable, numeric=True),
                Text(needed, numeric=True),
                Text(f"{words.percent(effect.shift - 1)} {shift}".strip(), numeric=True),
                Text(f"{effect.sign_flip_p:.3f}", numeric=True),
                Text(", ".join(str(index + 1) for index in effect.outliers) or "none"),
            )
        )
    grid = Grid(
        f"{metric.label}, by level",
        (
            "Level",
            "Blocks",
            f"CoV, {comparison.baseline}",
            f"CoV, {comparison.candidate}",
            "Detectable",
            "Blocks for ±1 %",
            "Change of B/A, robust",
            "Sign-flip p",
            "Outlying blocks",
        ),
        tuple(rows),
        note="Robust: the Hodges-Lehmann shift of B/A with its exact signed-rank interval, which "
        "needs 6 blocks. Outlying blocks are flagged, never dropped.",
        folded=True,
    )
    return section("Spread and robustness", [grid if rows else None])
