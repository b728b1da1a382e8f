"""Simulates measurements whose truth is known, and counts how often the statistics are wrong.

    python -m benchmarks.statistics_simulation [--trials 20000] [--seed 1]

The noise is assumed, not measured: each run varies by 1 %, each launch is off by another 1 %, and
the machine drifts by 2 % from the first run to the last. The ranking of the designs does not
depend on these numbers, the rates of the unpaired ones do.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vllm_amdopt.bench.distributions import t_quantile
from vllm_amdopt.bench.statistics import (
    PairedEffect,
    drift,
    effect_of_logs,
    holm,
    order_effect,
    verdict,
)

RUN, LAUNCH, DRIFT = 0.01, 0.01, 0.02
CONFIDENCE = 0.95
FAMILY = 45
"""Metrics times levels of an ordinary table."""


@dataclass(frozen=True)
class Noise:
    """Draws the logarithms of measured values. `heavy`: Student's t with 3 degrees of freedom.

    `scale` multiplies all of the noise, the drift included.
    """

    source: random.Random
    heavy: bool = False
    scale: float = 1.0

    def draw(self, deviation: float) -> float:
        normal = self.source.gauss(0, deviation * self.scale)
        if not self.heavy:
            return normal
        chi = sum(self.source.gauss(0, 1) ** 2 for _ in range(3)) / 3
        return normal / math.sqrt(chi * 3)  # the t's own variance is 3

    def runs(self, design: str, blocks: int, relaunch: bool) -> dict[str, list[float]]:
        """One run of each arm per block in the order of `design`, for instance "ABBA" repeated."""
        order = (design * (2 * blocks))[: 2 * blocks]
        if design == "A..B":
            order = "A" * blocks + "B" * blocks
        found: dict[str, list[float]] = {"A": [], "B": []}
        bias = {arm: self.draw(LAUNCH) for arm in "AB"}
        for index, arm in enumerate(order):
            launch = self.draw(LAUNCH) if relaunch else bias[arm]
            drifted = self.scale * DRIFT * index / (len(order) - 1)
            found[arm].append(drifted + launch + self.draw(RUN))
        return found


def paired(noise: Noise, blocks: int, effect: float = 0.0, design: str = "ABBA") -> PairedEffect:
    """One whole measurement with a true log ratio of `effect`."""
    runs = noise.runs(design, blocks, relaunch=True)
    return effect_of_logs(
        [b - a + effect for a, b in zip(runs["A"], runs["B"], strict=True)], CONFIDENCE
    )


def covers(found: PairedEffect, effect: float) -> bool:
    assert found.low is not None and found.high is not None
    return found.low <= math.exp(effect) <= found.high


def claims_difference(found: PairedEffect) -> bool:
    return not covers(found, 0.0)


def unpaired_claims_difference(runs: dict[str, list[float]]) -> bool:
    """What a two-sample t interval over the runs of a sequential design says."""
    a, b = runs["A"], runs["B"]
    error = math.sqrt((statistics.variance(a) + statistics.variance(b)) / len(a))
    difference = statistics.fmean(b) - statistics.fmean(a)
    return abs(difference) > t_quantile((1 + CONFIDENCE) / 2, 2 * len(a) - 2) * error


def rate(trials: int, once: Callable[[], bool]) -> float:
    return sum(once() for _ in range(trials)) / trials


def sequential_false_alarms(noise: Noise, blocks: int, trials: int, relaunch: bool) -> float:
    return rate(
        trials, lambda: unpaired_claims_difference(noise.runs("A..B", blocks, relaunch=relaunch))
    )


def paired_false_alarms(noise: Noise, blocks: int, trials: int, design: str = "ABBA") -> float:
    return rate(trials, lambda: claims_difference(paired(noise, blocks, design=design)))


def coverage(noise: Noise, blocks: int, trials: int, effect: float = 0.03) -> float:
    return rate(trials, lambda: covers(paired(noise, blocks, effect), effect))


def shift_coverage(noise: Noise, blocks: int, trials: int, effect: float = 0.03) -> float:
    """Of the Hodges-Lehmann interval."""

    def once() -> bool:
        found = paired(noise, blocks, effect)
        assert found.shift_low is not None and found.shift_high is not None
        return found.shift_low <= math.exp(effect) <= found.shift_high

    return rate(trials, once)


def sign_flip_false_alarms(noise: Noise, blocks: int, trials: int) -> float:
    return rate(trials, lambda: paired(noise, blocks).sign_flip_p <= 1 - CONFIDENCE)


def power_at_detectable(noise: Noise, blocks: int, trials: int) -> float:
    """How often an effect as large as the true minimum detectable one is noticed."""
    deviation = math.sqrt(2 * (RUN**2 + LAUNCH**2))
    quantiles = t_quantile((1 + CONFIDENCE) / 2, blocks - 1) + t_quantile(0.8, blocks - 1)
    effect = quantiles * deviation / math.sqrt(blocks)
    return rate(trials, lambda: claims_difference(paired(noise, blocks, effect)))


def family_false_alarms(noise: Noise, blocks: int, trials: int) -> tuple[float, float]:
    """At least one false claim among 45 independent cells: without and with Holm."""
    raw = adjusted = 0
    for _ in range(trials):
        p_values = {}
        for cell in range(FAMILY):
            p = paired(noise, blocks).p
            assert p is not None
            p_values[str(cell)] = p
        raw += min(p_values.values()) <= 1 - CONFIDENCE
        adjusted += min(holm(p_values).values()) <= 1 - CONFIDENCE
    return raw / trials, adjusted / trials


def verdicts(
    noise: Noise, blocks: int, trials: int, effect: float, margin: float
) -> dict[str, float]:
    """How often each verdict falls for a true log ratio of `effect`, higher is better."""
    counts: dict[str, int] = {}
    for _ in range(trials):
        said = verdict(paired(noise, blocks, effect), True, margin)
        counts[said] = counts.get(said, 0) + 1
    return {said: count / trials for said, count in counts.items()}


def drift_false_alarms(noise: Noise, runs: int, trials: int) -> float:
    """Of `drift` on runs that do not drift."""

    def once() -> bool:
        found = drift([noise.draw(RUN) for _ in range(runs)])
        return found is not None and found.p <= 1 - CONFIDENCE

    return rate(trials, once)


def order_false_alarms(noise: Noise, blocks: int, trials: int) -> float:
    """Of `order_effect` where the order makes no difference."""
    second = [index % 2 == 0 for index in range(blocks)]

    def once() -> bool:
        found = order_effect([noise.draw(RUN) for _ in range(blocks)], second)
        return found is not None and found.p <= 1 - CONFIDENCE

    return rate(trials, once)


def peeking_false_alarms(noise: Noise, most: int, trials: int) -> float:
    """A look after every block from the third on, stopping at the first difference."""

    def once() -> bool:
        logs = list(paired(noise, most).log_ratios)
        return any(claims_difference(effect_of_logs(logs[:n])) for n in range(3, most + 1))

    return rate(trials, once)


def rows(seed: int, trials: int) -> Iterator[tuple[str, str, list[float]]]:
    """(what, what it should be, the rates with 6 and with 10 blocks)."""
    source = random.Random(seed)
    normal, heavy = Noise(source), Noise(source, heavy=True)
    both = (6, 10)

    def each(measure: Callable[..., float], noise: Noise, **known: bool | str) -> list[float]:
        return [measure(noise, blocks, trials, **known) for blocks in both]

    yield (
        "AAABBB, one launch for each arm, unpaired: false difference",
        "0.05",
        each(sequential_false_alarms, normal, relaunch=False),
    )
    yield (
        "AAABBB, a launch for each run, unpaired: false difference",
        "0.05",
        each(sequential_false_alarms, normal, relaunch=True),
    )
    yield "ABAB, paired: false difference", "0.05", each(paired_false_alarms, normal, design="AB")
    yield "**ABBA, paired: false difference**", "0.05", each(paired_false_alarms, normal)
    yield "**the same, heavy tails**", "≤ 0.05", each(paired_false_alarms, heavy)
    yield "**interval covers a true +3 %**", "0.95", each(coverage, normal)
    yield "**the same, heavy tails**", "≥ 0.95", each(coverage, heavy)
    yield "Hodges-Lehmann interval covers", "≥ 0.95", each(shift_coverage, normal)
    yield "the same, heavy tails", "≥ 0.95", each(shift_coverage, heavy)
    yield "sign-flip test: false difference", "≤ 0.05", each(sign_flip_false_alarms, normal)
    yield (
        "an effect of the minimum detectable size is noticed",
        "0.80",
        each(power_at_detectable, normal),
    )
    families = [family_false_alarms(normal, blocks, max(trials // 20, 1)) for blocks in both]
    yield (
        f"any false difference in {FAMILY} cells, each judged alone",
        f"{1 - CONFIDENCE**FAMILY:.2f}",
        [raw for raw, _ in families],
    )
    yield "**the same with Holm**", "≤ 0.05", [adjusted for _, adjusted in families]
    yield (
        "regression of 1 % called equivalent at margin 1 %",
        "≤ 0.025",
        [
            verdicts(normal, blocks, trials, math.log(0.99), 0.01).get("equivalent", 0.0)
            for blocks in both
        ],
    )
    yield (
        "no difference called a regression at margin 1 %",
        "≤ 0.025",
        [verdicts(normal, blocks, trials, 0.0, 0.01).get("regression", 0.0) for blocks in both],
    )
    yield "drift found in still runs", "≤ 0.05", each(drift_false_alarms, normal)
    yield "order effect found where none is", "0.05", each(order_false_alarms, normal)
    yield (
        "a look after every block, stopping at a difference",
        "0.05",
        each(peeking_false_alarms, normal),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print("| what | should be | 6 blocks | 10 blocks |")
    print("|---|---|---|---|")
    for what, target, rates in rows(options.seed, options.trials):
        print(f"| {what} | {target} | {' | '.join(f'{value:.3f}' for value in rates)} |")


if __name__ == "__main__":
    main()
