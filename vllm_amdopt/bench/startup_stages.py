"""Divides one start-up into stages, from vLLM's own trace spans and, where it has none, its log.

Pure: spans, log lines with their times of arrival and three moments go in, seconds come out. The
stages follow each other and add up to the total; what no span or line accounts for is `other_s`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vllm_amdopt.bench.otlp import Span

LOADING = ("Loading (GPU)", "Loading (CPU)", "Load model")
"""The outermost span of loading: construction, weights and what is done to them."""

WARMUP = ("Warmup (GPU)", "Warmup (CPU)")
COMPILING = ("Compile graph", "Inductor compilation")
CAPTURE = ("Capture model",)
PREPARE = ("Prepare model",)
"""Profiling, allocation of the KV cache and warm-up together."""

ENGINE = ("EngineCoreProc init",)


@dataclass(frozen=True)
class LogLine:
    """A line of the server's log and when it arrived (seconds since the epoch)."""

    time: float
    text: str


@dataclass(frozen=True)
class Moments:
    """Seconds since the epoch: process started, server healthy."""

    spawned: float
    healthy: float


@dataclass(frozen=True)
class Stages:
    """Seconds by the names of `metrics.STARTUP`, and what each rests on: "spans" or "log"."""

    seconds: dict[str, float]
    sources: dict[str, str] = field(default_factory=dict)
    problem: str = ""


_CONFIGURED = re.compile(r"non-default args|vLLM API server version|\bversion \d+\.\d+")
_ENGINE = re.compile(r"Initializing a V1 LLM engine")
_LOAD_BEGIN = re.compile(r"Starting to load model")
_LOADED = re.compile(r"Model loading took [\d.]+ ?GiB(?: memory)? and ([\d.]+) seconds")
_WEIGHTS = re.compile(r"Loading weights took ([\d.]+) seconds")
_COMPILED = re.compile(r"torch\.compile (?:takes|took) ([\d.]+) s")
_PROFILED = re.compile(r"Initial profiling/warmup run took ([\d.]+) s")
_CAPTURED = re.compile(r"(?<!Encoder )[Gg]raph capturing finished in ([\d.]+) secs")
_PREPARED = re.compile(r"init engine \(.*?\) took ([\d.]+) s")


def stages(spans: Sequence[Span], log: Sequence[LogLine], moments: Moments) -> Stages:
    """The stages of one start-up."""
    total = moments.healthy - moments.spawned
    if total <= 0:
        return Stages({}, problem="the clock of this machine was set back while it was measured")
    inside = [span for span in spans if moments.spawned - 1 <= span.start <= moments.healthy + 1]
    known = _Known(inside, log, moments)
    seconds: dict[str, float] = {"total_s": total}
    sources: dict[str, str] = {}
    imports = known.arrival(_CONFIGURED)
    engine = known.begin(ENGINE) or known.arrival(_ENGINE)
    loading = known.begin(LOADING) or known.arrival(_LOAD_BEGIN)
    if imports is not None:
        seconds["imports_s"], sources["imports_s"] = imports - moments.spawned, "log"
    if imports is not None and engine is not None:
        seconds["configuration_s"] = engine - imports
        sources["configuration_s"] = "spans" if known.begin(ENGINE) else "log"
    if engine is not None and loading is not None:
        seconds["device_s"] = loading - engine
        sources["device_s"] = "spans" if known.begin(LOADING) else "log"
    known.loading(seconds, sources)
    known.preparing(seconds, sources)
    # A line may arrive a moment after the span has begun that it announces: `other_s`, and not the
    # sum, makes up for the stage that would be negative.
    attributed = sum(max(0.0, value) for name, value in seconds.items() if name != "total_s")
    seconds["other_s"] = total - attributed
    wrong = [name for name, value in seconds.items() if value < -TOLERANCE]
    if wrong:
        return Stages(
            {},
            problem=f"the stages do not fit into the total ({wrong[0]} would be "
            f"{seconds[wrong[0]]:.2f} s): a clock was set, or vLLM's spans changed",
        )
    return Stages({name: max(0.0, value) for name, value in seconds.items()}, sources)


TOLERANCE = 1.0
"""Seconds by which stages may overlap: arrival of lines, and log lines of whole seconds."""


class _Known:
    def __init__(self, spans: Sequence[Span], log: Sequence[LogLine], moments: Moments) -> None:
        self._spans = spans
        self._log = log
        self._moments = moments

    def begin(self, names: Iterable[str]) -> float | None:
        return min((span.start for span in self._spans if span.name in names), default=None)

    def intervals(self, names: Iterable[str]) -> list[tuple[float, float]]:
        """When any process was in one of these, as intervals that do not overlap."""
        merged: list[tuple[float, float]] = []
        for start, end in sorted((s.start, s.end) for s in self._spans if s.name in names):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    def arrival(self, pattern: re.Pattern[str]) -> float | None:
        """When the first line of this kind arrived."""
        return next((line.time for line in self._log if pattern.search(line.text)), None)

    def told(self, pattern: re.Pattern[str]) -> float | None:
        """The largest number of seconds that such lines tell (one line for each worker)."""
        found = (pattern.search(line.text) for line in self._log)
        return max((float(match.group(1)) for match in found if match), default=None)

    def loading(self, seconds: dict[str, float], sources: dict[str, str]) -> None:
        spans = self.intervals(LOADING)
        if spans:
            seconds["weight_load_s"], sources["weight_load_s"] = _length(spans), "spans"
            return
        told = self.told(_LOADED)
        told = self.told(_WEIGHTS) if told is None else told
        if told is not None:
            seconds["weight_load_s"], sources["weight_load_s"] = told, "log"

    def preparing(self, seconds: dict[str, float], sources: dict[str, str]) -> None:
        """Memory profiling, compilation, graph capture and warm-up share one stretch of time."""
        prepare = self.intervals(PREPARE)
        whole = _length(prepare) if prepare else self.told(_PREPARED)
        if whole is None:
            return
        where = "spans" if prepare else "log"
        compiling = self.intervals(COMPILING)
        # The log's number holds the tracing of the model by Dynamo as well, which has no span.
        told = self.told(_COMPILED)
        compiled = max(told or 0.0, _length(compiling))
        capturing = self.intervals(CAPTURE)
        captured = _length(capturing) if capturing else self.told(_CAPTURED) or 0.0
        warming = self.intervals(WARMUP)
        warmup: float | None
        if warming:
            inside = captured
            # Which of the two the compilation is part of: where its spans lie, else profiling,
            # where vLLM compiles on a GPU.
            if compiling and _overlap(compiling, warming) > 0.5 * _length(compiling):
                inside += compiled
            warmup = max(0.0, _length(warming) - inside)
        else:
            profiled = self.told(_PROFILED)
            warmup = None if profiled is None else max(0.0, profiled)
        seconds["compile_s"] = compiled
        sources["compile_s"] = "log" if told and told >= _length(compiling) else where
        seconds["graph_capture_s"] = captured
        sources["graph_capture_s"] = "spans" if capturing else "log"
        if warmup is not None:
            seconds["warmup_s"], sources["warmup_s"] = warmup, "spans" if warming else "log"
        seconds["memory_profiling_s"] = max(0.0, whole - compiled - captured - (warmup or 0.0))
        sources["memory_profiling_s"] = where


def _length(intervals: Iterable[tuple[float, float]]) -> float:
    return sum(end - start for start, end in intervals)


def _overlap(first: Iterable[tuple[float, float]], second: Sequence[tuple[float, float]]) -> float:
    return sum(
        max(0.0, min(end, other_end) - max(start, other_start))
        for start, end in first
        for other_start, other_end in second
    )
