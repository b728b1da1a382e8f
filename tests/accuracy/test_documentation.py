"""docs/accuracy.md says what the code holds: the limits, the tasks, the numbers of items."""

from __future__ import annotations

from pathlib import Path

from vllm_amdopt.accuracy.statistics import items_to_show
from vllm_amdopt.accuracy.task_items import GENERATED
from vllm_amdopt.accuracy.tasks import FEWEST_ITEMS
from vllm_amdopt.accuracy.thresholds import (
    FEWEST_POSITIONS,
    LOG_LIKELIHOOD_MARGIN,
    THRESHOLDS,
)

PAGE = (Path(__file__).parents[2] / "docs" / "accuracy.md").read_text()
WORDS = " ".join(PAGE.split())


def test_the_limits_stand_in_the_page_with_their_reasons() -> None:
    for dtype, one in THRESHOLDS.items():
        cells = (f"`{dtype}`", f"{one.mean_kl:g}", f"{one.tail_kl:g}", f"{one.tie:g}", one.reason)
        assert f"| {' | '.join(cells)} |" in PAGE


def test_the_numbers_in_the_text_are_those_of_the_code() -> None:
    assert f"it takes {items_to_show(0.01)} items to exclude a loss of 1 %" in WORDS
    assert f"{items_to_show(0.05)} for 5 %" in WORDS
    assert f"Fewer than {FEWEST_ITEMS} are refused" in WORDS
    assert f"Fewer than {FEWEST_POSITIONS} positions are refused" in WORDS
    assert f"off by more than {LOG_LIKELIHOOD_MARGIN} nats a token fails" in WORDS


def test_every_generated_task_is_described() -> None:
    assert all(f"| `{name}` |" in PAGE for name in GENERATED)
