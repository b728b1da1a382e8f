"""`accuracy logits`: replays one arm's tokens in every arm, compares, and says whether it holds.

The arms run one after the other, each in an engine of its own: the first one (which draws tokens
and replays them), the first one again (what a second launch, and a batch of another composition,
change), then the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_amdopt.accuracy.cells import Cell, positions
from vllm_amdopt.accuracy.logits_judgement import (
    ALL_CELLS,
    Summary,
    Verdict,
    judge,
    summaries,
)
from vllm_amdopt.accuracy.replay import Question, Replay, ReplayFailedError, replay
from vllm_amdopt.accuracy.thresholds import FEWEST_POSITIONS, THRESHOLDS, Thresholds, thresholds_for
from vllm_amdopt.bench.plan import Arm
from vllm_amdopt.bench.treatment import treatment_problem

PASSED, FAILED, INCONCLUSIVE, INVALID = 0, 1, 3, 4
"""Exit codes; 2 is the command line's, 130 is Ctrl-C."""


@dataclass(frozen=True)
class Settings:
    """One comparison. `environment`: the caller's, complete; arms add to it.

    `seconds`: what one launch of an arm may take.
    """

    model: str
    arms: tuple[Arm, ...]
    cells: tuple[Cell, ...]
    tokens: int
    top: int
    prompts: tuple[str, ...]
    serve_args: tuple[str, ...]
    seconds: float
    folder: Path
    environment: Mapping[str, str] = field(repr=False)

    def __post_init__(self) -> None:
        planned = positions(self.cells, self.tokens)
        if planned < FEWEST_POSITIONS:
            raise ValueError(
                f"{planned} positions are too few to judge by, {FEWEST_POSITIONS} are needed: "
                "raise --tokens or ask for more requests in --cells"
            )


@dataclass(frozen=True)
class ArmResult:
    """One arm against the first: `invalid` says why there is nothing to judge, or is empty."""

    arm: Arm
    replay: Replay | None = None
    compared: Mapping[str, Summary] = field(default_factory=dict)
    verdict: Verdict | None = None
    invalid: str = ""


@dataclass(frozen=True)
class LogitsResult:
    """The whole comparison. `floor`: the first arm against its second launch, "again", and against
    itself with every request twice in the batch, "doubled"; a summary for each cell."""

    settings: Settings
    limits: Thresholds
    dtype: str
    first: Replay | None
    floor: Mapping[str, Mapping[str, Summary]]
    others: tuple[ArmResult, ...]
    invalid: str = ""

    def exit_code(self, require_conclusive: bool = False) -> int:
        outcomes = [one.verdict.outcome for one in self.others if one.verdict is not None]
        if "failed" in outcomes:
            return FAILED
        if self.invalid or any(one.invalid for one in self.others):
            return INVALID
        if require_conclusive and "inconclusive" in outcomes:
            return INCONCLUSIVE
        return PASSED


def compare_arms(settings: Settings, say: Callable[[str], None]) -> LogitsResult:
    """Run all arms; `say` gets one line for each launch."""
    launch = _Launcher(settings, say)
    stock = settings.arms[0]
    limits, dtype = THRESHOLDS["bfloat16"], "unknown"
    try:
        first = launch(stock, stock.name, None)
        limits, dtype = thresholds_for(first.engine["dtype"]), first.engine["dtype"]
        refused = treatment_complaint(stock, first) or _too_little(first, settings.tokens)
        if refused:
            return LogitsResult(settings, limits, dtype, first, {}, (), refused)
        again = launch(stock, f"{stock.name}-again", first.reference, doubled=True)
        repeated = summaries(first.cells, again.cells, limits.tie)
        doubled = summaries(first.cells, again.doubled, limits.tie)
    except ReplayFailedError as error:
        return LogitsResult(settings, limits, dtype, None, {}, (), f"arm {stock.name}: {error}")
    floor = {"again": repeated, "doubled": doubled}
    others = []
    for arm in settings.arms[1:]:
        try:
            other = launch(arm, arm.name, first.reference)
        except ReplayFailedError as error:
            others.append(ArmResult(arm, invalid=str(error)))
            continue
        refused = incomparable(first, other) or treatment_complaint(arm, other)
        if refused:
            others.append(ArmResult(arm, other, invalid=refused))
            continue
        compared = summaries(first.cells, other.cells, limits.tie)
        others.append(ArmResult(arm, other, compared, judge(compared, [*floor.values()], limits)))
    return LogitsResult(settings, limits, dtype, first, floor, tuple(others))


class _Launcher:
    """Launches arms and says what came of it."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._question = Question(
            model=settings.model,
            cells=tuple(cell.name for cell in settings.cells),
            tokens=settings.tokens,
            top=settings.top,
            prompts=settings.prompts,
            seconds=settings.seconds,
        )

    def __call__(
        self,
        arm: Arm,
        label: str,
        reference: Mapping[str, Any] | None,
        doubled: bool = False,
    ) -> Replay:
        environment = dict(self._settings.environment)
        for name, value in arm.environment.items():
            if value:
                environment[name] = value
            else:
                environment.pop(name, None)
        self._say(f"arm {label}: starting an engine")
        begin = time.monotonic()
        try:
            done = replay(
                self._question,
                environment=environment,
                serve_args=(*self._settings.serve_args, *arm.serve_arguments),
                folder=self._settings.folder / label,
                reference=reference,
                doubled=doubled,
            )
        except ReplayFailedError as error:
            self._say(f"arm {label}: {error}")
            raise
        measured = sum(len(one) for cell in done.cells.values() for one in cell)
        self._say(
            f"arm {label}: {measured} positions in {time.monotonic() - begin:.0f} s, runner "
            f"{done.engine['runner']} by {done.engine['forced_by']}, {done.engine['dtype']}"
        )
        for cell, sentence in done.unsupported.items():
            self._say(f"arm {label}: cell {cell} left out: {sentence}")
        if done.wrong:
            self._say(f"arm {label}: {done.wrong}")
        return done


# --- what makes a comparison worthless ----------------------------------------------------------


def _too_little(first: Replay, tokens: int) -> str:
    measured = sum(len(one) for cell in first.cells.values() for one in cell)
    if measured < FEWEST_POSITIONS:
        left_out = "; ".join(f"{cell}: {why}" for cell, why in first.unsupported.items())
        return (
            f"{measured} positions could be measured and {FEWEST_POSITIONS} are needed: ask for "
            f"other --cells, or raise --tokens from {tokens}{f' ({left_out})' if left_out else ''}"
        )
    return ""


def incomparable(first: Replay, other: Replay) -> str:
    """Why two replays cannot be held against each other; empty where they can."""
    for fact, name, remedy in (
        ("runner", "model runner", "set VLLM_USE_V2_MODEL_RUNNER alike in every arm"),
        ("forced_by", "way of forcing tokens", "run the same vLLM in every arm"),
        ("vocabulary", "vocabulary size", "name one model"),
        ("max_num_batched_tokens", "limit of tokens a step", "give it alike in every arm"),
    ):
        mine, others = first.engine[fact], other.engine[fact]
        if mine != others:
            return (
                f"its {name} is {others}, the first arm's is {mine}, so they did not compute the "
                f"same batches: {remedy}"
            )
    missing = sorted(set(first.cells) - set(other.cells))
    if missing:
        return f"it did not answer the cells {', '.join(missing)}"
    return ""


def treatment_complaint(arm: Arm, done: Replay) -> str:
    """Why the plugin was not where it should be, or was where it should not; else empty."""
    problem = treatment_problem(arm, done.treatment)
    return "" if problem is None else problem.sentence


# --- what is shown ------------------------------------------------------------------------------

HEAD = (
    "arm", "cell", "positions", "KL mean ± SE", "KL p99", "KL max", "same top-1 ± SE", "disputed",
    "Δ log-likelihood [95 %]", "verdict",
)  # fmt: skip


def table(result: LogitsResult) -> list[tuple[str, ...]]:
    """The rows below `HEAD`: the A/A floor, then each arm; cells that nobody took come last."""
    name = result.settings.arms[0].name
    rows = [
        _row(f"{name} {how}", cell, summary, "floor")
        for how, floor in result.floor.items()
        for cell, summary in floor.items()
    ]
    for one in result.others:
        if one.verdict is None:
            rows.append((one.arm.name, ALL_CELLS, *["–"] * 7, "invalid"))
            continue
        failed = {finding.cell for finding in one.verdict.findings}
        for cell, summary in one.compared.items():
            word = "failed" if cell in failed else "within"
            rows.append(
                _row(
                    one.arm.name, cell, summary, one.verdict.outcome if cell == ALL_CELLS else word
                )
            )
    unsupported = {} if result.first is None else result.first.unsupported
    rows += [("every arm", cell, *["–"] * 7, "unsupported") for cell in unsupported]
    return rows


def _row(arm: str, cell: str, summary: Summary, verdict: str) -> tuple[str, ...]:
    error = "" if summary.kl_error is None else f" ± {summary.kl_error:.1e}"
    interval = summary.log_likelihood_interval
    spread = "" if interval is None else f" [{interval.low:+.1e}, {interval.high:+.1e}]"
    return (
        arm,
        cell,
        str(summary.positions),
        f"{summary.kl_mean:.2e}{error}",
        f"{summary.kl_tail:.1e}",
        f"{summary.kl_largest:.1e}",
        f"{100 * summary.agreement:.2f} % ± {100 * summary.agreement_error:.2f}",
        str(summary.disputed),
        f"{summary.log_likelihood:+.1e}{spread}",
        verdict,
    )


def conclusions(result: LogitsResult) -> list[str]:
    """One sentence for each arm, or the one that says why there is none."""
    if result.invalid:
        return [f"invalid: {result.invalid}"]
    return [
        f"{one.arm.name}: invalid: {one.invalid}"
        if one.verdict is None
        else f"{one.arm.name}: {one.verdict.outcome}: {one.verdict.sentence}"
        for one in result.others
    ]
