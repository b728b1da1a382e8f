"""Which assumption moves a prediction most: each is set to its low and its high end in turn."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.amd_model.assumptions import SWEPT, Machine
from benchmarks.amd_model.predict import predict
from benchmarks.amd_model.serving import Case

REPRESENTATIVES = (
    "paged_attention_decode llama-8b batch8/context8192",
    "mla_decode deepseek-v3-tp8 batch32/context8192",
    "paged_attention_prefill llama-8b tokens2048/context8192",
    "gemm_small_batch llama-8b qkv/6144x4096/batch8",
    "kv_cache_write llama-8b batch32",
    "all_reduce_one_shot llama-405b-tp8 batch8",
)
"""One case per kernel, swept where the user names none: a sweep takes some forty predictions."""


@dataclass(frozen=True)
class Swing:
    """Predicted time over the unchanged prediction, with one assumption at either end."""

    assumption: str
    low_factor: float
    high_factor: float
    at_low: float
    at_high: float

    @property
    def size(self) -> float:
        """The larger of the two changes, as a factor of at least 1."""
        ratios = (self.at_low, self.at_high)
        return max(max(ratio, 1 / ratio) for ratio in ratios)


def sweep(case: Case, machine: Machine) -> list[Swing]:
    """One Swing per assumption, the one that matters most first."""
    unchanged = predict(case, machine).seconds

    def ratio(name: str, factor: float) -> float:
        if factor == 1:
            return 1.0
        return predict(case, machine.with_factor(name, factor)).seconds / unchanged

    swings = [
        Swing(row.name, row.low, row.high, ratio(row.name, row.low), ratio(row.name, row.high))
        for row in SWEPT
    ]
    return sorted(swings, key=lambda swing: -swing.size)
