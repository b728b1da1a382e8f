"""The garbage collector's thresholds: raised once, put back, and never somebody else's."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from vllm_amdopt.integration import quick_imports

PYTHONS = (700, 10, 10)


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*PYTHONS)
    yield
    quick_imports.end()
    gc.enable()
    gc.set_threshold(*before)


def test_raised_and_put_back() -> None:
    quick_imports.begin()
    quick_imports.begin()  # vLLM asks for the platform twice
    assert gc.get_threshold() == quick_imports.THRESHOLDS
    quick_imports.end()
    assert gc.get_threshold() == PYTHONS
    quick_imports.end()
    assert gc.get_threshold() == PYTHONS


def test_what_somebody_set_meanwhile_stays() -> None:
    quick_imports.begin()
    gc.set_threshold(5000, 5, 5)
    quick_imports.end()
    assert gc.get_threshold() == (5000, 5, 5)


@pytest.mark.parametrize("higher", [(200_000, 10, 10), (0, 10, 10)], ids=["higher", "zero"])
def test_who_set_more_or_nothing_keeps_it(higher: tuple[int, int, int]) -> None:
    gc.set_threshold(*higher)
    quick_imports.begin()
    assert gc.get_threshold() == higher


def test_a_collector_that_is_off_stays_as_it_is() -> None:
    gc.disable()
    quick_imports.begin()
    assert gc.get_threshold() == PYTHONS
