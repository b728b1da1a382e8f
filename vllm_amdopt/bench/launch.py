"""One launch of one arm: start, warm up, measure every load, end. It compares nothing.

Whatever happens becomes rows: a load that could not be measured is a row with the reason, never a
number.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_amdopt.bench.gates import RunEvidence, evidence_metrics, run_problem
from vllm_amdopt.bench.gpu_use import (
    GIB,
    QUIET_BYTES,
    GpuUse,
    Machine,
    Watcher,
    foreign_use,
    gpus_in_use,
)
from vllm_amdopt.bench.load import (
    COUNTS,
    Drive,
    LoadError,
    LoadResult,
    RunTimeoutError,
    bench_arguments,
)
from vllm_amdopt.bench.metrics import MEMORY
from vllm_amdopt.bench.plan import LETTERS, Arm, Level, Plan
from vllm_amdopt.bench.progress import Reporter, Timing
from vllm_amdopt.bench.server import (
    ArmServer,
    LaunchError,
    ServerSettings,
    compilations,
    launch_facts,
    read_metrics,
)
from vllm_amdopt.bench.treatment import Treatment, read_treatment, treatment_problem

Row = dict[str, Any]

FREE_DISK_BYTES = 512 << 20
MEMORY_METRICS = tuple(metric.name for metric in MEMORY)


class DiskFullError(RuntimeError):
    """Too little room to go on; a sentence that says what to do."""


class GpusBusyError(RuntimeError):
    """Somebody else's work is on the GPUs of this run and does not go away."""


@dataclass(frozen=True)
class LaunchSettings:
    """What all launches of a run share. Seconds.

    `gpu_indices`: the GPUs of this run, () without any. `quiet_seconds`: how long to wait until
    nobody is on them.
    """

    out: Path
    server: ServerSettings
    machine: Machine = field(default_factory=Machine)
    gpu_indices: tuple[int, ...] = ()
    run_seconds: float = 1800.0
    quiet_seconds: float = 900.0
    cooldown_seconds: float = 0.0
    free_disk_bytes: int = FREE_DISK_BYTES


@dataclass
class Launch:
    """What came of one launch. `facts`: as they stand in the record's `launches`."""

    rows: list[Row]
    treatment: Treatment = field(default_factory=Treatment)
    facts: dict[str, Any] = field(default_factory=dict)
    log: str = ""
    failure: str | None = None


@dataclass(frozen=True)
class Place:
    """Where in the run a launch stands. `block` -1: the one that is thrown away."""

    block: int
    position: int
    attempt: int = 0

    def folder(self, out: Path, letter: str, arm: str) -> Path:
        block = "pre-block" if self.block < 0 else f"block-{self.block + 1:02d}"
        again = f"-again-{self.attempt}" if self.attempt else ""
        return out / block / f"{letter}-{arm}{again}"


class Launcher:
    """Launches arms of one plan, one at a time."""

    def __init__(
        self,
        plan: Plan,
        settings: LaunchSettings,
        drive: Drive,
        reporter: Reporter,
        timing: Timing,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._drive = drive
        self._reporter = reporter
        self._timing = timing

    def launch(self, arm: Arm, place: Place) -> Launch:
        """Everything of one launch; only the user's interrupt, a full disk and busy GPUs raise."""
        letter = LETTERS[self._plan.arms.index(arm)]
        folder = place.folder(self._settings.out, letter, arm.name)
        if folder.exists():
            shutil.rmtree(folder)
        self._check_disk()
        self._wait_until_quiet()
        folder.mkdir(parents=True)
        server = ArmServer(
            self._settings.server,
            self._plan.model,
            f"{arm.name}-{place.block + 1}-{place.attempt}-{time.monotonic_ns() % 10**9}",
            folder,
            (*self._plan.serve_arguments, *arm.serve_arguments),
            arm.environment,
        )
        launch = Launch(rows=self._rows(arm, place))
        try:
            self._start(server, arm, launch, folder)
            if launch.failure is None:
                self._measure(server, arm, place, launch, folder)
        finally:
            launch.log = server.log_text()
            server.stop()
        self._finish(arm, place, launch, server)
        return launch

    # --- parts of a launch ----------------------------------------------------------------------

    def _rows(self, arm: Arm, place: Place) -> list[Row]:
        """A row for each load and repetition, not measured yet."""
        if place.block < 0:
            repetitions = [(level, 0) for level in self._plan.levels]
        else:
            repetitions = [
                (level, repetition)
                for level in self._plan.levels_of(place.block)
                for repetition in range(self._plan.repetitions)
            ]
        return [
            {
                "block": place.block,
                "order": self._plan.order_name(max(0, place.block)),
                "position": place.position,
                "arm": arm.name,
                "level": level.record(),
                "repetition": repetition,
                "status": "error",
                "reason": "not measured",
                "metrics": {},
            }
            for level, repetition in repetitions
        ]

    def _start(self, server: ArmServer, arm: Arm, launch: Launch, folder: Path) -> None:
        self._reporter.status(f"starting {arm.name}")
        (folder / "command.json").write_text(
            json.dumps({"command": server.command(), "environment": dict(arm.environment)})
        )
        try:
            server.start(self._check_disk)
        except LaunchError as error:
            _fail(launch, error.kind, str(error))
            return
        (folder / "command.json").write_text(
            json.dumps({"command": server.command(), "environment": dict(arm.environment)})
        )
        self._timing.launches.append(server.seconds_to_ready)
        log = server.log_text()
        launch.treatment = read_treatment(log)
        launch.facts = {"seconds_to_ready": server.seconds_to_ready, **launch_facts(log)}
        held = [gpu.memory_used for gpu in self._our_gpus() if gpu.memory_used is not None]
        if held:
            launch.facts["gpu_memory_gib"] = sum(held) / GIB
        problem = treatment_problem(arm, launch.treatment)
        if problem is not None:
            _fail(launch, problem.status, problem.sentence)

    def _measure(
        self, server: ArmServer, arm: Arm, place: Place, launch: Launch, folder: Path
    ) -> None:
        """Warm up at every load, then measure; fills the rows."""

        def check() -> None:
            died = server.died()
            if died is not None:
                raise LoadError(died)
            self._check_disk()

        begin = time.monotonic()
        for level in self._plan.levels:
            self._reporter.status(f"warming up {arm.name}, {level.load}")
            name = f"warmup_{level.file_stem}.json"
            seed = self._plan.request_seed(place.block, level, 0, warmup=True)
            try:
                result = self._run(server, level, level.warmup_prompts, seed, folder / name, check)
                if result.failure is not None and not level.drops_allowed:
                    raise LoadError(result.failure)
            except LoadError as error:
                said = _cause(server, error)
                _fail(launch, "error", f"while warming up at {level.label}: {said}")
                return
        if place.block < 0:
            for row in launch.rows:
                row.update(status="ok", reason=None)
            return
        watcher = Watcher(self._settings.machine, self._settings.gpu_indices)
        watcher.start()
        try:
            for row in launch.rows:
                level = next(level for level in self._plan.levels if level.record() == row["level"])
                try:
                    self._measure_one(server, level, place, row, folder, watcher, check)
                except LoadError as error:
                    said = _cause(server, error)
                    row.update(status="error", reason=said)
                    if server.died() or isinstance(error, RunTimeoutError):
                        _fail(launch, "error", f"not measured: {said}", unmeasured_only=True)
                        return
        finally:
            watcher.stop()
        runs = len(self._plan.levels) * (1 + self._plan.repetitions)
        self._timing.runs.append((time.monotonic() - begin) / runs)

    def _measure_one(
        self,
        server: ArmServer,
        level: Level,
        place: Place,
        row: Row,
        folder: Path,
        watcher: Watcher,
        check: Callable[[], None],
    ) -> None:
        repetition = row["repetition"]
        self._reporter.status(
            f"block {place.block + 1}/{self._plan.blocks} {row['order']} · {row['arm']} · "
            f"{level.label} · repetition {repetition + 1}"
        )
        try:
            server.post("/reset_prefix_cache")
        except OSError as error:
            if server.died() is None and getattr(error, "code", None) != 404:
                raise LoadError(f"the prefix cache could not be emptied: {error}") from None
        before, offset = _metrics(server), server.log_size()
        watcher.take()
        seed = self._plan.request_seed(place.block, level, repetition)
        name = f"{level.file_stem}_r{repetition}.json"
        result = self._run(server, level, level.prompts, seed, folder / name, check)
        if result.failure is not None and not level.drops_allowed:
            counts = {key: result.metrics[key] for key in COUNTS if key in result.metrics}
            row.update(metrics=counts)
            raise LoadError(result.failure)
        evidence = RunEvidence(
            before=before,
            after=_metrics(server),
            compiled=compilations(server.log_text(offset)),
            foreign=watcher.take(),
            client_share=result.client_share,
        )
        problem = run_problem(evidence)
        row.update(
            status="ok" if problem is None else "tainted",
            reason=problem,
            metrics={**result.metrics, **evidence_metrics(evidence)},
        )
        if result.text_digest:
            row["text_digest"] = result.text_digest

    def _run(
        self,
        server: ArmServer,
        level: Level,
        prompts: int,
        seed: int,
        result: Path,
        check: Callable[[], None],
    ) -> LoadResult:
        arguments = bench_arguments(
            level,
            base_url=server.base_url,
            served_name=server.served_name,
            tokenizer=self._plan.model,
            prompts=prompts,
            seed=seed,
        )
        return self._drive(arguments, result, self._settings.run_seconds, check)

    def _finish(self, arm: Arm, place: Place, launch: Launch, server: ArmServer) -> None:
        later = read_treatment(launch.log)
        for name, reason in later.faults.items():
            if name not in launch.treatment.faults and launch.failure is None:
                _taint(launch, f"{name} failed in {arm.name} and was switched off: {reason}")
        launch.treatment = later
        failed = [row for row in launch.rows if row["status"] != "ok"]
        if launch.failure is None and failed:
            launch.failure = failed[0]["reason"]
        memory = {key: value for key, value in launch.facts.items() if key in MEMORY_METRICS}
        for row in launch.rows:
            if row["status"] == "ok" and row["metrics"]:
                row["metrics"].update(memory)
        launch.facts.update(
            block=place.block,
            attempt=place.attempt,
            arm=arm.name,
            plan=launch.treatment.record(),
            log=str(server.log_path.relative_to(self._settings.out)),
            failure=launch.failure,
        )
        if self._settings.cooldown_seconds:
            self._reporter.status(f"cooling down {self._settings.cooldown_seconds:.0f} s")
            time.sleep(self._settings.cooldown_seconds)

    # --- the machine ----------------------------------------------------------------------------

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self._settings.out).free
        if free < self._settings.free_disk_bytes:
            raise DiskFullError(
                f"only {free >> 20} MiB are free where {self._settings.out} lies; make room, then "
                "go on with --resume"
            )

    def _our_gpus(self) -> list[GpuUse]:
        if not self._settings.gpu_indices:
            return []
        used = gpus_in_use(self._settings.machine)
        return [gpu for gpu in used if gpu.index in self._settings.gpu_indices]

    def _wait_until_quiet(self) -> None:
        """Until nobody is on the GPUs of this run: the server before needs a while to leave."""
        deadline = time.monotonic() + self._settings.quiet_seconds
        while True:
            foreign = foreign_use(self._our_gpus())
            if not foreign:
                return
            if time.monotonic() >= deadline:
                raise GpusBusyError(
                    f"{foreign[0]}, and was there for {self._settings.quiet_seconds:.0f} s "
                    f"(more than {QUIET_BYTES / GIB:.0f} GiB or any process counts)"
                )
            self._reporter.status(f"waiting for the GPUs: {foreign[0]}")
            time.sleep(min(2.0, max(0.05, deadline - time.monotonic())))


def _fail(launch: Launch, status: str, sentence: str, *, unmeasured_only: bool = False) -> None:
    for row in launch.rows:
        if not unmeasured_only or row["reason"] == "not measured":
            row.update(status=status, reason=sentence)
    launch.failure = sentence


def _taint(launch: Launch, sentence: str) -> None:
    for row in launch.rows:
        if row["status"] == "ok":
            row.update(status="tainted", reason=sentence)
    launch.failure = sentence


def _cause(server: ArmServer, error: LoadError) -> str:
    """Why a run failed: a connection breaks a moment before the process that held it is gone."""
    if isinstance(error, RunTimeoutError):
        return str(error)
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        died = server.died()
        if died is not None:
            return died
        time.sleep(0.05)
    return str(error)


def _metrics(server: ArmServer) -> dict[str, float]:
    """Empty where the server shows none: then what they would have told is not known."""
    try:
        return read_metrics(server.get("/metrics"))
    except OSError:
        return {}
