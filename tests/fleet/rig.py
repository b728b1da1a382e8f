"""Runs program.py for every simulated machine and arm, and gathers the records.

Not a test and not a decision: what a record means is said in page.py and test_fleet.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fleet import models

ROOT = Path(__file__).parents[2]
TENSOR_PARALLEL = (1, 4, 8)
KINDS = ("gfx942", "gfx950")
ARMS = {
    "stock": {"VLLM_PLUGINS": ""},
    "stock, AITER=1": {"VLLM_PLUGINS": "", "VLLM_ROCM_USE_AITER": "1"},
    "plugin": {"VLLM_AMDOPT": "1"},
}
"""What the environment says in each arm. An empty VLLM_PLUGINS keeps every plugin out."""

AT_IMPORT = ("VLLM_PLUGINS", "VLLM_AMDOPT")
"""Variables that decide the platform: arms that differ in others share a process."""


@dataclass(frozen=True)
class Machine:
    """One process: a kind of GPU, whether AITER is installed, and an arm."""

    gfx: str
    aiter: bool
    arm: str

    @property
    def words(self) -> str:
        return f"{self.gfx}, {'with' if self.aiter else 'without'} AITER, {self.arm}"


@dataclass(frozen=True)
class Combination:
    """What a record is about."""

    machine: Machine
    model: str
    tensor_parallel: int


@dataclass(frozen=True)
class Fleet:
    """All records of one vLLM."""

    vllm: str
    records: dict[Combination, dict[str, Any]] = field(default_factory=dict)


class RigError(RuntimeError):
    """The rig itself failed; vLLM's own refusals are records."""


def machines(
    kinds: Iterable[str] = KINDS,
    aiter: Iterable[bool] = (True, False),
    arms: Iterable[str] = tuple(ARMS),
) -> list[Machine]:
    """Every machine and arm of these."""
    return [Machine(gfx, found, arm) for gfx in kinds for found in aiter for arm in arms]


def run(
    configurations: Mapping[str, Mapping[str, object]],
    wanted: Sequence[Machine],
    tensor_parallel: Sequence[int] = TENSOR_PARALLEL,
    *,
    engine: dict[str, Any] | None = None,
    workers: int | None = None,
) -> Fleet:
    """The records of these models on these machines. RigError if a process of ours failed."""
    workers = workers or min(os.cpu_count() or 1, 4)
    with tempfile.TemporaryDirectory(prefix="amdopt-fleet-") as scratch:
        paths = models.write(configurations, Path(scratch) / "models")

        def one(together: list[Machine]) -> list[tuple[Combination, dict[str, Any]]]:
            question = {
                "gfx": together[0].gfx,
                "aiter": together[0].aiter,
                "models": paths,
                "tensor_parallel": list(tensor_parallel),
                "engine": engine or {},
            }
            return _ask(together, question, Path(scratch))

        with ThreadPoolExecutor(workers) as pool:
            found = dict(pair for pairs in pool.map(one, _processes(wanted)) for pair in pairs)
    broken = [(c, r) for c, r in found.items() if r["outcome"] == "rig"]
    if broken:
        combination, record = broken[0]
        raise RigError(f"{combination}: {record['error']}")
    return Fleet(vllm=next(iter(found.values()))["vllm"], records=found)


def _processes(wanted: Sequence[Machine]) -> list[list[Machine]]:
    """The machines whose arms can be forked from one process, together."""
    groups: dict[object, list[Machine]] = {}
    for machine in wanted:
        at_import = tuple(ARMS[machine.arm].get(name) for name in AT_IMPORT)
        groups.setdefault((machine.gfx, machine.aiter, at_import), []).append(machine)
    return list(groups.values())


def _ask(
    together: list[Machine], question: dict[str, Any], scratch: Path
) -> list[tuple[Combination, dict[str, Any]]]:
    """The records of one process."""
    variables = {machine.arm: ARMS[machine.arm] for machine in together}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "HF_"))}
    at_import = {k: v for k, v in variables[together[0].arm].items() if k in AT_IMPORT}
    process = subprocess.run(
        [sys.executable, "-m", "tests.fleet.program"],
        input=json.dumps({**question, "arms": variables}),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **environment,
            **at_import,
            "HF_HUB_OFFLINE": "1",
            "VLLM_CACHE_ROOT": str(scratch / "cache"),
            "VLLM_LOGGING_LEVEL": "ERROR",
            "OMP_NUM_THREADS": "1",
        },
    )
    if process.returncode != 0:
        raise RigError(f"{together[0].words}: {process.stderr[-4000:]}")
    machines_by_arm = {machine.arm: machine for machine in together}
    pairs = []
    for line in process.stdout.splitlines():
        record = json.loads(line)
        machine = machines_by_arm[record.pop("arm")]
        key = Combination(machine, record.pop("model"), record.pop("tensor_parallel"))
        pairs.append((key, record))
    return pairs
