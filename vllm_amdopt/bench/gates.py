"""Which measurements count: judged run by run, then between the arms of a block; runs nothing.

Each gate answers one way in which `vllm bench serve` reports numbers that are not what they seem.
Failed requests are `load.read_result`'s, the treatment is `treatment`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_CLIENT_SHARE = 0.85
"""Of one core: the load generator is one asyncio process, and above this its queue is measured."""

MOST_CACHE_HITS = 0.01
"""Share of prompt tokens from the prefix cache: a warm cache raised a throughput by 86 %
(https://github.com/vllm-project/vllm/issues/52884)."""

LEAST_CEILING = 3.0
"""How far the load generator's own ceiling should lie above what is measured."""


@dataclass(frozen=True)
class RunEvidence:
    """What was seen around one run, beside its numbers.

    `before`, `after`: the server's metrics. `compiled`: log lines. `foreign`: what else was on
    the GPU, in sentences. None: could not be read.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    compiled: Sequence[str] = ()
    foreign: Sequence[str] = ()
    client_share: float | None = None


def run_problem(evidence: RunEvidence) -> str | None:
    """Why a run with numbers does not count, or None."""
    if evidence.foreign:
        return evidence.foreign[0]
    if evidence.compiled:
        return (
            f"the server compiled while it was measured ({evidence.compiled[0]}): warm up with "
            "more requests (--warmup-per-conc)"
        )
    if (evidence.client_share or 0.0) > MOST_CLIENT_SHARE:
        return (
            f"the load generator used {evidence.client_share:.0%} of a core: it is measured, not "
            "the server (`vllm-amdopt bench calibrate-client` has its ceiling)"
        )
    hits = cache_hit_share(evidence)
    if hits is not None and hits > MOST_CACHE_HITS:
        return (
            f"{hits:.1%} of the prompt tokens came from the prefix cache: the server did not empty "
            "it, or the prompts share a beginning"
        )
    return None


def _increase(evidence: RunEvidence, name: str) -> float | None:
    """Prometheus' client adds `_total` to counters; vLLM's names are without."""
    for key in (f"{name}_total", name):
        if key in evidence.before and key in evidence.after:
            return evidence.after[key] - evidence.before[key]
    return None


def cache_hit_share(evidence: RunEvidence) -> float | None:
    """Share of prompt tokens that were found in the prefix cache; None where not known."""
    queries = _increase(evidence, "vllm:prefix_cache_queries")
    hits = _increase(evidence, "vllm:prefix_cache_hits")
    if queries is None or hits is None or queries <= 0:
        return None
    return hits / queries


def evidence_metrics(evidence: RunEvidence) -> dict[str, float]:
    """What joins a row's metrics."""
    facts = {
        "client_share": evidence.client_share,
        "prefix_cache_hit_share": cache_hit_share(evidence),
        "preemptions": _increase(evidence, "vllm:num_preemptions"),
    }
    return {name: value for name, value in facts.items() if value is not None}


def taint_unequal_work(rows: Sequence[dict[str, Any]]) -> None:
    """Taints, in place, rows of one block whose arms did not produce as many tokens.

    Rows of the same load and repetition are compared; those that are not ok are left out.
    """
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] == "ok":
            groups.setdefault((str(row["level"]), row["repetition"]), []).append(row)
    for group in groups.values():
        if any(row["metrics"].get("failed") for row in group):
            continue  # a load that may drop requests: the work is what is compared
        for metric, what in (("total_output_tokens", "answers"), ("total_input_tokens", "prompts")):
            counts = {row["arm"]: row["metrics"].get(metric) for row in group}
            if len(set(counts.values())) > 1:
                told = ", ".join(f"{arm} {count:.0f}" for arm, count in counts.items())
                for row in group:
                    row["status"] = "tainted"
                    row["reason"] = f"the arms' {what} have unequal numbers of tokens: {told}"
                break


def ceiling_warning(measured: float, ceiling: float) -> str | None:
    """A sentence where the measured output tokens per second are near the client's own limit."""
    if measured <= 0 or ceiling / measured >= LEAST_CEILING:
        return None
    return (
        f"the load generator alone reaches {ceiling:.0f} output tok/s on this machine, only "
        f"{ceiling / measured:.1f} times the measured {measured:.0f}: part of each latency is its "
        "own, in both arms alike"
    )
