"""The limits of `accuracy logits`, each with its reason; no measurement is made here.

A limit is a floor per dtype, which rounding alone may reach, or three times what two launches of
the first arm differ by, whichever is larger. An arm that stays below rounds differently; one that
does not computes something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FLOOR_FACTOR = 3.0
"""How often the A/A difference may be exceeded: it is one draw from its own distribution."""

FEWEST_POSITIONS = 100
"""Fewer say nothing about a mean or a tail; llama.cpp's KL tool draws the same line."""

FEWEST_FOR_TAIL = 100
"""Positions of a cell from which its 99th percentile is not just its largest value."""

LOG_LIKELIHOOD_MARGIN = 0.002
"""Nats a token: a perplexity within 0.2 %, below what a change of quantization shows."""


@dataclass(frozen=True)
class Thresholds:
    """Limits for one dtype of the model.

    mean_kl, tail_kl: nats, of the mean and of the 99th percentile of KL(A || B).
    tie: nats by which A's first token must lead its second before another choice counts.
    """

    mean_kl: float
    tail_kl: float
    tie: float
    reason: str


THRESHOLDS: Mapping[str, Thresholds] = {
    "bfloat16": Thresholds(
        mean_kl=5e-5,
        tail_kl=2e-3,
        tie=0.125,
        reason=(
            "logits of 8 to 16 are multiples of 1/16, so two arms may round a lead apart by 1/8: "
            "KL is p (1 - p) / 128 then, at most 2e-3, and 5e-5 in the mean of roundings and texts"
        ),
    ),
    "float16": Thresholds(
        mean_kl=8e-7,
        tail_kl=3e-5,
        tie=0.016,
        reason="as bfloat16 with three bits more: shifts an eighth as large, KL a 64th",
    ),
    "float32": Thresholds(
        mean_kl=1e-8,
        tail_kl=1e-7,
        tie=1e-3,
        reason=(
            "sums in another order move a logit by some 1e-5, KL by 1e-10; log-probabilities come "
            "as float32, which leaves the bound itself uncertain by 1e-8"
        ),
    ),
}


def thresholds_for(dtype: str) -> Thresholds:
    """Those of the model's dtype; of bfloat16, the coarsest, for any other."""
    return THRESHOLDS.get(dtype, THRESHOLDS["bfloat16"])
