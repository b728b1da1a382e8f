"""Names, directions and the short form `metric@load`."""

from __future__ import annotations

import pytest

from vllm_amdopt.bench.metrics import ALL, MEMORY, SERVING, STARTUP, metric_and_load, metric_of


def test_rows_of_the_published_table_are_there_in_its_order() -> None:
    """`paiton-8b`, batch 32: the rows that readers of such tables expect."""
    published = [
        "Successful requests",
        "Duration (s)",
        "Request throughput (req/s)",
        "Output token throughput (tok/s)",
        "Total token throughput (tok/s)",
        "Mean TTFT (ms)",
        "p99 TTFT (ms)",
        "Mean TPOT (ms)",
        "p99 TPOT (ms)",
        "Mean ITL (ms)",
        "p99 ITL (ms)",
        "Mean E2EL (ms)",
        "p99 E2EL (ms)",
    ]
    assert [title for metric in SERVING if (title := metric.title) in published] == published


def test_names_are_unique_and_titles_tell_them_apart() -> None:
    assert len(ALL) == len(SERVING) + len(MEMORY) + len(STARTUP)
    assert len({metric.title for metric in ALL.values()}) == len(ALL)


def test_directions() -> None:
    assert metric_of("output_throughput").higher_is_better is True
    assert metric_of("p99_itl_ms").higher_is_better is False
    assert metric_of("total_s").higher_is_better is False


@pytest.mark.parametrize("name", ["completed", "throughput", ""])
def test_what_cannot_be_judged_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no metric that can be judged; there are duration"):
        metric_of(name)


def test_metric_and_load() -> None:
    assert metric_and_load("output_throughput@64") == (metric_of("output_throughput"), 64.0)
    assert metric_and_load("p99_itl_ms") == (metric_of("p99_itl_ms"), None)
    with pytest.raises(ValueError, match="after @ comes a concurrency"):
        metric_and_load("p99_itl_ms@many")
