"""What the model takes for granted about the chips: one table, each row with its source and range.

`status` says how good a row is. "read": the source was read for this table. "second-hand": as
others report it. "recalled": what we remember of the document named, which was not at hand; look it
up before relying on it. "assumed": a guess. Nothing here was measured for this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_amdopt.hardware import ARCHITECTURES

GFX = ("gfx942", "gfx950")
PRODUCT = {"gfx942": "MI300X", "gfx950": "MI355X"}

_WHITE_PAPER = "AMD CDNA 3 white paper"
_SHEETS = "AMD Instinct MI300X and MI355X data sheets"
_LLVM = "LLVM SISchedule.td"
_TABLE = "vllm_amdopt/hardware.py, with its sources"


@dataclass(frozen=True)
class Assumption:
    """One number per chip; `low` and `high` are the factors that the sensitivity sweep applies."""

    name: str
    unit: str
    values: Mapping[str, float]
    low: float
    high: float
    status: Literal["read", "second-hand", "recalled", "assumed"]
    source: str


def _both(value: float) -> dict[str, float]:
    return dict.fromkeys(GFX, value)


def _hardware(name: str) -> dict[str, float]:
    return {gfx: float(getattr(ARCHITECTURES[gfx], name)) for gfx in GFX}


ASSUMPTIONS: tuple[Assumption, ...] = (
    # --- the whole chip
    Assumption("compute_units", "", _hardware("compute_units"), 1, 1, "read", _TABLE),
    Assumption("xcds", "", _hardware("xcds"), 1, 1, "read", _TABLE),
    Assumption(
        "clock",
        "Hz",
        {"gfx942": 2.1e9, "gfx950": 2.4e9},
        0.7,
        1,
        "recalled",
        f"{_SHEETS}: the highest engine clock; under load it is lower, by how much is not known",
    ),
    Assumption(
        "hbm_bandwidth",
        "bytes/s",
        _hardware("hbm_bytes_per_second"),
        1,
        1,
        "read",
        f"{_TABLE}: the peak, which the floor is computed with",
    ),
    Assumption(
        "hbm_reachable",
        "share of hbm_bandwidth",
        _both(0.81),
        0.9,
        1.1,
        "second-hand",
        "news reports of an analysis of MI300X by Ambati et al. (October 2025): about 81 % of "
        "5.3 TB/s; MI355X assumed alike",
    ),
    Assumption(
        "matrix_rate",
        "FLOP/s, dense bf16",
        {"gfx942": 1307.4e12, "gfx950": 2516.6e12},
        1,
        1,
        "recalled",
        f"{_SHEETS}: the peak, which the floor is computed with; agrees with LLVM's passes, the "
        "clock and the number of compute units",
    ),
    Assumption(
        "l2_bytes_per_clock",
        "bytes/clock and XCD",
        _both(2048),
        0.5,
        1,
        "recalled",
        f"{_WHITE_PAPER}: 16 channels of 128 bytes; gfx950 assumed alike",
    ),
    Assumption(
        "link_bandwidth",
        "bytes/s and direction, to each of seven peers",
        {"gfx942": 64e9, "gfx950": 76.8e9},
        0.75,
        1,
        "recalled",
        f"{_SHEETS}: Infinity Fabric links of 128 and 153.6 GB/s, both directions together",
    ),
    # --- latencies, in clocks of the compute unit
    Assumption(
        "hbm_latency",
        "clocks",
        _both(1100),
        0.64,
        1.82,
        "assumed",
        "no number at hand: pointer chasing was measured by Chips and Cheese (2024) and by Tee et "
        "al. (workshop at SC 2025), whose numbers should replace this; swept from 700 to 2000",
    ),
    Assumption(
        "l2_latency",
        "clocks",
        _both(500),
        0.5,
        2,
        "assumed",
        "page-table entries and other loads that an address waits for: L2 or Infinity Cache",
    ),
    Assumption("store_latency", "clocks", _both(300), 0.33, 3, "assumed", "no source"),
    Assumption("scratch_latency", "clocks", _both(200), 0.5, 4, "assumed", "no source; L1 or L2"),
    Assumption("scalar_latency", "clocks", _both(200), 0.5, 2, "assumed", "scalar cache hit"),
    Assumption(
        "lds_latency",
        "clocks",
        _both(64),
        1,
        2,
        "assumed",
        f"no number at hand; {_LLVM} has 20 and says that it can be 8 to 256",
    ),
    Assumption(
        "peer_latency",
        "clocks",
        _both(4000),
        0.5,
        2,
        "assumed",
        "a load from, or an atomic to, another GPU: about 2 microseconds",
    ),
    # --- the compute unit
    Assumption(
        "cu_bytes_per_clock",
        "bytes/clock",
        _both(64),
        0.5,
        1,
        "recalled",
        f"{_WHITE_PAPER}: 64 bytes a clock from the vector L1; not known is what one unit can "
        "draw from HBM, so the sweep goes down to 32",
    ),
    Assumption(
        "lds_bytes_per_clock",
        "bytes/clock",
        _both(128),
        1,
        2,
        "recalled",
        "AMD CDNA 3 ISA: 32 banks of 4 bytes; CDNA 4 may read twice that, which is not used here",
    ),
    Assumption(
        "address_queue",
        "clocks",
        _both(256),
        0.25,
        4,
        "assumed",
        "how far vector memory may lag behind before further ones cannot be issued",
    ),
    Assumption("lds_queue", "clocks", _both(64), 0.25, 4, "assumed", "the same for LDS"),
    Assumption(
        "transcendental_clocks",
        "clocks a wave",
        {"gfx942": 16, "gfx950": 8},
        0.5,
        2,
        "recalled",
        f"{_LLVM}, WriteTrans32: quarter rate (read); AMD CDNA 4 white paper: twice that rate",
    ),
    Assumption(
        "conversion_clocks",
        "clocks a wave",
        _both(16),
        0.25,
        1,
        "read",
        f"{_LLVM}, WriteFloatCvt: 4 x 4 clocks, which its authors call perhaps inaccurate",
    ),
    Assumption("taken_branch", "clocks", _both(16), 0.5, 2, "assumed", f"{_LLVM} has 32"),
    Assumption("barrier", "clocks", _both(8), 0.5, 8, "assumed", f"{_LLVM} has 2000: 'guessed'"),
    Assumption(
        "dispatch_interval",
        "clocks",
        _both(100),
        0.1,
        4,
        "assumed",
        "between two workgroups that start on the same compute unit",
    ),
    Assumption(
        "launch_gap",
        "s",
        _both(2e-6),
        0.5,
        2.5,
        "assumed",
        "between dependent kernels of a captured graph; counted for the second launch on",
    ),
)
"""Every number of the model that is not the cost of an instruction (those are in costs.py)."""


@dataclass(frozen=True)
class Machine:
    """The numbers of one chip, as ASSUMPTIONS has them or as a sweep changed them."""

    gfx: str
    numbers: Mapping[str, float]

    def __getattr__(self, name: str) -> float:
        try:
            return self.numbers[name]
        except KeyError:
            raise AttributeError(f"the model has no assumption {name!r}") from None

    @property
    def lds_bytes(self) -> int:
        """LDS of one compute unit, bytes."""
        return ARCHITECTURES[self.gfx].lds_bytes_per_cu

    def with_factor(self, name: str, factor: float) -> Machine:
        """The same chip with one number multiplied."""
        return Machine(self.gfx, {**self.numbers, name: self.numbers[name] * factor})


def machine(gfx: str) -> Machine:
    """MI300X for gfx942, MI355X for gfx950. ValueError for any other chip."""
    if gfx not in GFX:
        raise ValueError(f"{gfx} is not modelled; use {' or '.join(GFX)}.")
    return Machine(gfx, {row.name: row.values[gfx] for row in ASSUMPTIONS})


SWEPT: tuple[Assumption, ...] = tuple(r for r in ASSUMPTIONS if (r.low, r.high) != (1, 1))
"""The rows that the sensitivity sweep moves."""
