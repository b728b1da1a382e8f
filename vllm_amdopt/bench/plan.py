"""What a run measures, in which order and with which seeds; it starts nothing.

Arms are servers, levels are loads. A block launches every arm once: the even blocks in the order
of the arms, the odd ones in reverse (ABBA…), so that a drift of the machine meets all arms alike.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from vllm_amdopt.bench.metrics import metric_and_load

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FEWEST_PROMPTS = 8
"""Of one measured run: below, its start and its end are most of it."""

Kind = Literal["serving_ab", "serving_aa", "serving_ablation"]


class PlanError(ValueError):
    """What the user asked for cannot be planned; the message is a sentence for them."""


@dataclass(frozen=True)
class Arm:
    """One server: its name, what its environment and command line have beyond the others'.

    `expected_features`: those that its log has to show as on.
    `unwanted_features`: those that it must not have on.
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    serve_arguments: tuple[str, ...] = ()
    expected_features: tuple[str, ...] = ()
    unwanted_features: tuple[str, ...] = ()

    @property
    def plugin_wanted(self) -> bool | None:
        """Whether its environment asks for the plugin; None where it says nothing about it."""
        value = self.environment.get("VLLM_AMDOPT")
        return None if value is None else value.strip() not in ("", "0")


@dataclass(frozen=True)
class Level:
    """One load: prompts of `input_len` tokens, answers of `output_len`, and how they arrive.

    Exactly one of `concurrency` (requests in flight) and `request_rate` (arrivals per second) is
    set. `prompts` counts the measured requests, `warmup_prompts` those before. `range_ratio`:
    lengths vary by that share around the given ones, 0 not at all. `drops_allowed`: the load may be
    more than a server takes, and requests that it drops are a finding, not a fault.
    """

    dataset: str
    input_len: int
    output_len: int
    concurrency: int | None = None
    request_rate: float | None = None
    prompts: int = 0
    warmup_prompts: int = 0
    dataset_path: str | None = None
    range_ratio: float = 0.0
    drops_allowed: bool = False

    @property
    def load(self) -> str:
        """The number of requests in flight, or of arrivals per second."""
        return f"{self.request_rate:g}" if self.concurrency is None else str(self.concurrency)

    @property
    def label(self) -> str:
        unit = "" if self.request_rate is None else " requests/s"
        return f"{self.dataset}:{self.input_len}/{self.output_len}@{self.load}{unit}"

    @property
    def file_stem(self) -> str:
        return re.sub(r"[^\w.-]+", "-", f"{self.label}_n{self.prompts}")

    def record(self) -> dict[str, Any]:
        """As it stands in a run record's rows: what is not set is left out."""
        values = asdict(self).items()
        return {key: value for key, value in values if value is not None and value is not False}


@dataclass(frozen=True)
class Plan:
    """Everything that decides on what is measured; its digest tells two plans apart."""

    kind: Kind
    model: str
    arms: tuple[Arm, ...]
    levels: tuple[Level, ...]
    serve_arguments: tuple[str, ...] = ()
    blocks: int = 6
    repetitions: int = 1
    seed: int = 0
    pre_block: bool = True
    primary: str = "output_throughput"
    gated: tuple[str, ...] = ()
    margin: float = 0.01
    slo: Mapping[str, float] = field(default_factory=dict)
    treatment_pattern: str | None = None
    preset: str | None = None

    def __post_init__(self) -> None:
        if not self.levels:
            raise PlanError("there is no load to measure: give --workload and --concurrency")
        if self.blocks < 1 or self.repetitions < 1:
            raise PlanError("--blocks and --repetitions count from 1")
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise PlanError(f"two arms are called {max(names, key=names.count)!r}: rename one")
        if not 2 <= len(self.arms) <= len(LETTERS):
            raise PlanError(f"2 to {len(LETTERS)} arms can be compared, not {len(self.arms)}")
        labels = [level.file_stem for level in self.levels]
        if len(set(labels)) != len(labels):
            raise PlanError(f"the load {max(labels, key=labels.count)} is given twice")
        loads = [level.load for level in self.levels]
        for claim in (self.primary, *self.gated):
            load = metric_and_load(claim)[1]
            if load is not None and load not in map(float, loads):
                known = ", ".join(dict.fromkeys(loads))
                raise PlanError(f"{claim} names the load {load:g}, and the loads are {known}")

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @property
    def digest(self) -> str:
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def order(self, block: int) -> tuple[int, ...]:
        """Indices of the arms in the order in which a block launches them."""
        forward = tuple(range(len(self.arms)))
        return forward if block % 2 == 0 else forward[::-1]

    def order_name(self, block: int) -> str:
        return "".join(LETTERS[index] for index in self.order(block))

    def levels_of(self, block: int) -> tuple[Level, ...]:
        """All levels in an order drawn for the block, the same one in each of its arms."""
        levels = list(self.levels)
        random.Random(f"{self.seed}/{block}").shuffle(levels)
        return tuple(levels)

    def request_seed(self, block: int, level: Level, repetition: int, warmup: bool = False) -> int:
        """The prompts' seed: alike in all arms of a block, new in every block, other to warm up."""
        text = f"{self.seed}/{block}/{level.file_stem}/{repetition}/{warmup}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    def runs_per_launch(self) -> int:
        """Runs of the load generator in one launch, those to warm up counted."""
        return len(self.levels) * (1 + self.repetitions)


# --- what the user writes -----------------------------------------------------------------------

_ARM_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")


def parse_arm(text: str, serve_arguments: str = "", option: str = "--a") -> Arm:
    """`name:VARIABLE=value,VARIABLE=value`; a comma inside a value is kept where no `=` follows."""
    name, _, rest = text.partition(":")
    if not _ARM_NAME.fullmatch(name):
        raise PlanError(
            f"{option} {text!r}: an arm is NAME:VARIABLE=VALUE,..., for example "
            "plugin:VLLM_AMDOPT=1"
        )
    environment: dict[str, str] = {}
    last = ""
    for part in filter(None, rest.split(",")):
        variable, equals, value = part.partition("=")
        if equals and _VARIABLE.fullmatch(variable):
            if variable in environment:
                raise PlanError(f"{option}: {variable} is set twice")
            environment[variable] = value
            last = variable
        elif last:
            environment[last] += f",{part}"
        else:
            raise PlanError(f"{option} {text!r}: {part!r} is not VARIABLE=VALUE")
    return Arm(name, environment, words(serve_arguments, f"{option}-serve-args"))


def words(text: str, option: str) -> tuple[str, ...]:
    """The words of a command line, quoted as in a shell."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise PlanError(f"{option} {text!r} cannot be split into words: {error}") from None


_WORKLOAD = re.compile(r"(random|sharegpt|custom):(\d+)/(\d+)(?:~(0?\.\d+))?(?:@(.+))?")


def parse_workload(text: str) -> Level:
    """`random:1024/128`, `random:1024/128~0.2` (lengths vary), `sharegpt:0/0@FILE`: no load yet."""
    found = _WORKLOAD.fullmatch(text)
    if found is None:
        raise PlanError(
            f"--workload {text!r}: write DATASET:INPUT/OUTPUT, for example random:1024/128, or "
            "sharegpt:0/0@FILE and custom:0/128@FILE for prompts of your own"
        )
    dataset, given, wanted, ratio, path = found.groups()
    if dataset == "random" and (int(given) < 1 or int(wanted) < 1):
        raise PlanError(f"--workload {text!r}: random prompts and answers need at least one token")
    if dataset != "random" and path is None:
        raise PlanError(f"--workload {text!r}: {dataset} needs its file, as {dataset}:0/0@FILE")
    return Level(
        dataset, int(given), int(wanted), dataset_path=path, range_ratio=float(ratio or 0.0)
    )


def make_levels(
    workloads: Sequence[Level],
    concurrencies: Sequence[int],
    request_rates: Sequence[float],
    *,
    prompts: int | None = None,
    prompts_per_concurrency: int = 10,
    warmup_per_concurrency: int = 2,
    seconds_per_rate: float = 30.0,
    drops_allowed: bool = False,
) -> tuple[Level, ...]:
    """Every workload at every load.

    `prompts` of each run are, unless given, ten for each request in flight (InferenceX and dstack
    do the same), or what arrives in `seconds_per_rate`.
    """
    if any(count < 1 for count in concurrencies) or any(rate <= 0 for rate in request_rates):
        raise PlanError("--concurrency counts from 1, and --request-rate is more than 0")
    if prompts is not None and prompts < 1:
        raise PlanError("--prompts counts from 1")
    levels = []
    for workload in (replace(given, drops_allowed=drops_allowed) for given in workloads):
        for count in concurrencies:
            measured = prompts or max(FEWEST_PROMPTS, prompts_per_concurrency * count)
            warmup = max(1, warmup_per_concurrency * count)
            levels.append(
                replace(workload, concurrency=count, prompts=measured, warmup_prompts=warmup)
            )
        for rate in request_rates:
            measured = prompts or max(FEWEST_PROMPTS, math.ceil(rate * seconds_per_rate))
            warmup = max(1, math.ceil(rate * 4))
            levels.append(
                replace(workload, request_rate=rate, prompts=measured, warmup_prompts=warmup)
            )
    return tuple(levels)


def parse_claim(text: str, option: str) -> str:
    """`p99_itl_ms@64` (one load) or `p99_itl_ms` (the geometric mean over all), as it was given."""
    try:
        metric_and_load(text)
    except ValueError as error:
        raise PlanError(f"{option}: {error}") from None
    return text


def parse_share(text: str, option: str) -> float:
    """`1%` or `0.01` as 0.01."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise PlanError(f"{option} {text!r}: write a share, for example 1%") from None
    if not 0 <= value < 1:
        raise PlanError(f"{option} {text!r}: a share is at least 0 and below 100%")
    return value


_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str, option: str) -> float:
    """`90`, `90s`, `20m`, `2h` as seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if found is None:
        raise PlanError(f"{option} {text!r}: write a time, for example 90s, 20m or 2h")
    return float(found.group(1)) * _SECONDS[found.group(2)]


def parse_slo(text: str) -> dict[str, float]:
    """`itl_p99=50,ttft_p99=2000` (milliseconds) as {"p99_itl_ms": 50.0, ...}."""
    limits: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"(ttft|tpot|itl|e2el)_(mean|p50|p90|p99)=(\d+(?:\.\d+)?)", part)
        if found is None:
            raise PlanError(
                f"--slo {part!r}: write for example itl_p99=50 (milliseconds), with ttft, tpot, "
                "itl or e2el and mean, p50, p90 or p99"
            )
        metric, statistic, value = found.groups()
        limits[f"{statistic}_{metric}_ms"] = float(value)
    return limits
