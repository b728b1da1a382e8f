"""The harness around mock servers, put together as the command does it, for its tests."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.small_load import SmallLoad
from vllm_amdopt.bench.gpu_use import Machine
from vllm_amdopt.bench.journal import NAME, Journal, Progress
from vllm_amdopt.bench.launch import Launcher, LaunchSettings
from vllm_amdopt.bench.load import Drive
from vllm_amdopt.bench.plan import Arm, Level, Plan
from vllm_amdopt.bench.progress import Reporter, Timing
from vllm_amdopt.bench.runner import Outcome, Runner
from vllm_amdopt.bench.server import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "tests" / "models" / "checkpoints" / "llama-gqa")
MOCK = (sys.executable, "-m", "vllm_amdopt.bench.mock_server")
IN_USE = (
    'vllm-amdopt in use: {"plan": "0123456789ab", "features": ["attention"], "rules": [], '
    '"off": {"mla": "the model has no latent attention"}}'
)
"""What a server with the plugin says."""

STOCK = Arm("stock", {"VLLM_AMDOPT": "0"})
PLUGIN = Arm("plugin", {"VLLM_AMDOPT": "1"}, ("--mock-say", IN_USE))
SMALL = Level("random", 8, 4, concurrency=2, prompts=4, warmup_prompts=2)


def nobody(command: Sequence[str]) -> None:
    """A machine on which no tool answers."""


@dataclass
class Rig:
    """One run in a directory; `run` may be called again to resume it."""

    out: Path
    arms: tuple[Arm, ...] = (STOCK, PLUGIN)
    levels: tuple[Level, ...] = (SMALL,)
    blocks: int = 2
    retries: int = 0
    run_seconds: float = 60.0
    ready_seconds: float = 60.0
    budget: float | None = None
    port: int | None = None
    free_disk_bytes: int = 0
    program: tuple[str, ...] = MOCK
    drive: Drive = field(default_factory=SmallLoad)
    machine: Machine = field(default_factory=lambda: Machine(Path("/nowhere"), nobody))
    gpu_indices: tuple[int, ...] = ()
    quiet_seconds: float = 0.0
    changes: dict[str, Any] = field(default_factory=dict)
    stream: io.StringIO = field(default_factory=io.StringIO)

    @property
    def plan(self) -> Plan:
        values: dict[str, Any] = {
            "kind": "serving_ab",
            "model": MODEL,
            "arms": self.arms,
            "levels": self.levels,
            "blocks": self.blocks,
            "pre_block": False,
            **self.changes,
        }
        return Plan(**values)

    def run(self) -> Outcome:
        self.out.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        settings = LaunchSettings(
            out=self.out,
            server=ServerSettings(environment, self.program, self.ready_seconds, self.port),
            machine=self.machine,
            gpu_indices=self.gpu_indices,
            run_seconds=self.run_seconds,
            quiet_seconds=self.quiet_seconds,
            free_disk_bytes=self.free_disk_bytes,
        )
        reporter, timing = Reporter(self.stream, "plain"), Timing()
        journal = Journal(self.out / NAME)
        progress: Progress = journal.read()
        launcher = Launcher(self.plan, settings, self.drive, reporter, timing)
        runner = Runner(
            self.plan,
            launcher,
            journal,
            progress,
            reporter,
            timing,
            retries=self.retries,
            budget_seconds=self.budget,
        )
        return runner.run()


def with_arguments(arm: Arm, *arguments: str) -> Arm:
    """The arm whose mock server has these arguments, too."""
    return Arm(
        arm.name,
        arm.environment,
        (*arm.serve_arguments, *arguments),
        arm.expected_features,
        arm.unwanted_features,
    )


def statuses(outcome: Outcome) -> list[tuple[str, str]]:
    return [(row["arm"], row["status"]) for row in outcome.rows]
