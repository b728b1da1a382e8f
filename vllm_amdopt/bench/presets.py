"""Reads the published loads from workloads.toml; what they are for is written there."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_amdopt.bench.plan import Level, PlanError, make_levels, parse_workload

NAME = "workloads.toml"
PLACES = (
    Path(__file__).with_name(NAME),  # in a wheel
    Path(__file__).resolve().parents[2] / "benchmarks" / NAME,  # in a checkout
)


@dataclass(frozen=True)
class Preset:
    """A named load with its source. `assumed`: what the source does not say and was decided here.

    `needs_calibration`: the load generator's ceiling has to be known on this machine.
    """

    name: str
    description: str
    source: str
    levels: tuple[Level, ...]
    source_says: str = ""
    assumed: str = ""
    model: str | None = None
    serve_arguments: tuple[str, ...] = ()
    baseline: Mapping[str, str] = field(default_factory=dict)
    blocks: int = 6
    primary: str = "output_throughput"
    gated: tuple[str, ...] = ()
    slo: Mapping[str, float] = field(default_factory=dict)
    needs_calibration: bool = False


def read_presets(path: Path | None = None) -> dict[str, Preset]:
    """All presets, by name. PlanError if the file is missing or does not say what it has to."""
    path = path or next((place for place in PLACES if place.is_file()), PLACES[-1])
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: _preset(name, entry) for name, entry in content["presets"].items()}
    except OSError as error:
        raise PlanError(f"the presets in {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(f"the presets in {path} are not what they have to be: {error}") from None


def preset(name: str) -> Preset:
    known = read_presets()
    if name not in known:
        raise PlanError(f"--preset {name!r} is not known; there are {', '.join(sorted(known))}")
    return known[name]


def _preset(name: str, entry: Mapping[str, Any]) -> Preset:
    levels = tuple(level for load in entry["loads"] for level in _levels(load))
    known = set(Preset.__dataclass_fields__) - {"name", "levels"} | {"loads"}
    unknown = sorted(set(entry) - known)
    if unknown:
        raise ValueError(f"preset {name} has the unknown key {unknown[0]}")
    values = {key: value for key, value in entry.items() if key != "loads"}
    for key in ("serve_arguments", "gated"):
        values[key] = tuple(values.get(key, ()))
    values["slo"] = {metric: float(limit) for metric, limit in values.get("slo", {}).items()}
    return Preset(name=name, levels=levels, **values)


def _levels(load: Mapping[str, Any]) -> Sequence[Level]:
    amounts = ("prompts", "prompts_per_concurrency", "seconds_per_rate", "drops_allowed")
    unknown = sorted(set(load) - {"workloads", "concurrency", "request_rate", *amounts})
    if unknown:
        raise ValueError(f"a load has the unknown key {unknown[0]}")
    return make_levels(
        [parse_workload(text) for text in load["workloads"]],
        load.get("concurrency", ()),
        load.get("request_rate", ()),
        **{key: load[key] for key in amounts if key in load},
    )
