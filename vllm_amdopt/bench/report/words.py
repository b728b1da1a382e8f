"""Numbers and verdicts in words, the same in every format."""

from vllm_amdopt.bench.analysis import Cell
from vllm_amdopt.bench.report.content import Tone
from vllm_amdopt.bench.statistics import Summary

VERDICT_TONES: dict[str, Tone] = {
    "better": "good",
    "regression": "bad",
    "equivalent": "",
    "inconclusive": "muted",
}


def percent(share: float | None, digits: int = 1) -> str:
    """0.042 -> "+4.2 %"; a typographic minus, and no sign for what rounds to nothing."""
    if share is None:
        return "–"
    text = f"{abs(100 * share):.{digits}f}"
    if float(text) == 0:
        return f"{text} %"
    return f"{'+' if share > 0 else '−'}{text} %"


def interval(low: float | None, high: float | None, digits: int = 1) -> str:
    """Both ends as percents in brackets; "" where there is no interval."""
    if low is None or high is None:
        return ""
    return f"[{percent(low, digits)}, {percent(high, digits)}]".replace(" %,", ",")


def improvement(cell: Cell) -> str:
    """ "+4.2 % [+2.9, +5.5 %]"."""
    if cell.improvement is None:
        return "–"
    change = cell.improvement
    digits = 2 if abs(change.value) < 0.01 else 1
    return f"{percent(change.value, digits)} {interval(change.low, change.high, digits)}".strip()


def p_value(cell: Cell) -> str:
    """Holm's for gated cells, marked; the plain one else."""
    if cell.effect is None or cell.effect.p is None:
        return "–"
    value = cell.effect.p if cell.adjusted_p is None else cell.adjusted_p
    text = "<0.001" if value < 0.001 else f"{value:.3f}"
    return f"{text} (Holm)" if cell.gated else text


def mean(known: Summary | None, cell: Cell) -> str:
    return "–" if known is None else cell.metric.shown(known.mean)


def variation(known: Summary | None) -> str:
    """The coefficient of variation."""
    if known is None or known.variation is None:
        return "–"
    return f"{100 * known.variation:.1f} %"


def tone_of(cell: Cell) -> Tone:
    return VERDICT_TONES.get(cell.verdict or "", "muted")


def counted(number: int, one: str, many: str | None = None) -> str:
    """ "1 block", "10 blocks"."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def listed(words: list[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
