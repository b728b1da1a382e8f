"""The metrics of a run by the names that `vllm bench serve` writes: label, unit, which way is good.

What a metric is not listed here is kept in records and left out of tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """`higher_is_better`: None where neither direction is good, such as a number of requests."""

    name: str
    label: str
    unit: str
    higher_is_better: bool | None
    decimals: int = 2

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def shown(self, value: float) -> str:
        """The number as tables show it; start-up stages and throughputs keep two decimals."""
        return f"{value:,.{self.decimals}f}"


def _latencies() -> list[Metric]:
    short = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}
    return [
        Metric(
            f"{statistic}_{name}_ms", f"{statistic.replace('mean', 'Mean')} {label}", "ms", False
        )
        for name, label in short.items()
        for statistic in ("mean", "p50", "p99")
    ]


SERVING = (
    Metric("completed", "Successful requests", "", None, 0),
    Metric("failed", "Failed requests", "", None, 0),
    Metric("duration", "Duration", "s", False),
    Metric("request_throughput", "Request throughput", "req/s", True),
    Metric("output_throughput", "Output token throughput", "tok/s", True),
    Metric("total_token_throughput", "Total token throughput", "tok/s", True),
    *_latencies(),
    Metric("request_goodput", "Goodput", "req/s", True),
    Metric("joules_per_output_token", "Energy per output token", "J", False, 3),
)
"""The rows of the serving table, in the order of the tables that others publish."""

MEMORY = (
    Metric("weights_gib", "Weights after load", "GiB", False),
    Metric("gpu_memory_gib", "GPU memory in use after start", "GiB", False),
    Metric("graph_memory_gib", "Memory of captured graphs", "GiB", False),
    Metric("kv_cache_gib", "KV cache", "GiB", True),
    Metric("kv_cache_tokens", "KV cache", "tokens", True, 0),
)

STARTUP = (
    Metric("imports_s", "Imports", "s", False),
    Metric("configuration_s", "Configuration, engine process", "s", False),
    Metric("device_s", "Device and worker start", "s", False),
    Metric("weight_load_s", "Model weight load", "s", False),
    Metric("memory_profiling_s", "Memory profiling", "s", False),
    Metric("compile_s", "Compilation", "s", False),
    Metric("graph_capture_s", "Graph capture", "s", False),
    Metric("warmup_s", "Initial warm-up", "s", False),
    Metric("other_s", "Not attributed", "s", False),
    Metric("total_s", "Total start-up", "s", False),
    Metric("first_token_s", "First token after that", "s", False),
    Metric("steady_token_s", "First token of a later request", "s", False, 3),
)
"""The stages of a start-up. The first nine add up to the total, which ends when the server says
that it is healthy."""

ALL: Mapping[str, Metric] = {metric.name: metric for metric in (*SERVING, *MEMORY, *STARTUP)}


def metric_of(name: str) -> Metric:
    """The metric of a name; ValueError that names what there is for one that nobody judges."""
    if name not in ALL or ALL[name].higher_is_better is None:
        known = ", ".join(key for key, known in ALL.items() if known.higher_is_better is not None)
        raise ValueError(f"{name!r} is no metric that can be judged; there are {known}")
    return ALL[name]


def metric_and_load(text: str) -> tuple[Metric, float | None]:
    """`output_throughput@64` -> the metric and the load 64; without @, all levels (None)."""
    name, at, load = text.partition("@")
    metric = metric_of(name)
    if not at:
        return metric, None
    try:
        return metric, float(load)
    except ValueError:
        raise ValueError(f"{text!r}: after @ comes a concurrency or a request rate") from None
