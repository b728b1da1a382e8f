"""Starts servers in turns and divides each start into stages; judges nothing and prints nothing.

A launch belongs to a mode: `cold`, with every cache of compiled code empty; `warm`, with caches
that an earlier start of the same arm filled; `disk-cold`, that with the weights out of memory.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vllm_amdopt.bench.otlp import SpanReceiver
from vllm_amdopt.bench.page_cache import evict, resident_share, weight_files
from vllm_amdopt.bench.plan import Arm
from vllm_amdopt.bench.progress import Reporter
from vllm_amdopt.bench.server import ArmServer, LaunchError, ServerSettings, cause, launch_facts
from vllm_amdopt.bench.startup_stages import LogLine, Moments, Stages, stages
from vllm_amdopt.bench.treatment import read_treatment, treatment_problem
from vllm_amdopt.run_record import Row

MODES = ("cold", "warm", "disk-cold")

CACHES = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "AITER_JIT_DIR": "aiter",
}
"""What a start leaves behind for the next one, by the variable that says where."""

TRACING = {
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    "OTEL_BSP_SCHEDULE_DELAY": "200",  # milliseconds until spans are sent; 5000 without it
}
ENDPOINT = "--otlp-traces-endpoint"

STEADY_REQUESTS = 3
FLUSH_SECONDS = 0.6
MOST_RESIDENT = 0.05
"""Share of the weights that may be left in memory for a start to count as one from disk."""


@dataclass(frozen=True)
class StartupPlan:
    """What is started: every arm in every mode once in every block, in the order AB, BA, AB, …"""

    model: str
    arms: tuple[Arm, ...]
    modes: tuple[str, ...] = ("cold", "warm")
    blocks: int = 6
    serve_arguments: tuple[str, ...] = ()

    def launches(self) -> Iterable[tuple[int, str, int, Arm]]:
        """(block, mode, position, arm) in the order in which they happen."""
        for block in range(self.blocks):
            arms = self.arms if block % 2 == 0 else self.arms[::-1]
            for mode in self.modes:
                for position, arm in enumerate(arms):
                    yield block, mode, position, arm

    def order(self, block: int) -> str:
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(self.arms)]
        return letters if block % 2 == 0 else letters[::-1]


@dataclass
class StartupRun:
    """One run of a plan. `keep` is called with all rows after each launch, and saves them."""

    plan: StartupPlan
    settings: ServerSettings
    out: Path
    reporter: Reporter
    keep: Callable[[Sequence[Row]], None]
    rows: list[Row] = field(default_factory=list)
    evidence: dict[str, list[str]] = field(default_factory=dict)
    plans: dict[str, dict[str, object]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    traced: bool = True

    def run(self) -> None:
        """All launches that are not among the rows yet."""
        done = {(row.block, row.level.get("mode"), row.arm) for row in self.rows}
        left = [one for one in self.plan.launches() if (one[0], one[1], one[3].name) not in done]
        failed = self._fill({arm.name for _, mode, _, arm in left if mode != "cold"})
        for number, (block, mode, position, arm) in enumerate(left):
            self.reporter.status(
                f"start {number + 1} of {len(left)}: block {block + 1}, {mode}, {arm.name}"
            )
            if mode != "cold" and arm.name in failed:
                row = self._row(block, mode, position, arm, "error", failed[arm.name])
            else:
                row = self._launch(block, mode, position, arm)
            self.rows.append(row)
            self.keep(self.rows)
            told = f"{row.metrics['total_s']:.1f} s" if row.status == "ok" else row.reason
            self.reporter.event(
                "start", f"block {block + 1}, {mode}, {arm.name}: {told}", status=row.status
            )

    # --- parts ----------------------------------------------------------------------------------

    def _fill(self, names: set[str]) -> dict[str, str]:
        """Start each arm once, so that its caches are full; arm -> why that failed."""
        failed = {}
        for arm in self.plan.arms:
            if arm.name not in names or (self._caches(arm) / "filled").exists():
                continue
            self.reporter.event("fill", f"a first start of {arm.name} fills its caches")
            row = self._launch(0, "warm", 0, arm, folder=self.out / "fill" / arm.name)
            if row.status == "error":
                failed[arm.name] = f"the start that was to fill its caches failed: {row.reason}"
            else:
                (self._caches(arm) / "filled").touch()
        return failed

    def _caches(self, arm: Arm) -> Path:
        return self.out / "caches" / arm.name

    def _launch(
        self, block: int, mode: str, position: int, arm: Arm, folder: Path | None = None
    ) -> Row:
        folder = folder or self.out / f"block-{block + 1:02d}" / f"{mode}-{arm.name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        caches = self._caches(arm) if mode != "cold" else folder / "caches"
        try:
            resident = self._evict() if mode == "disk-cold" else None
            if resident is not None and resident > MOST_RESIDENT:
                reason = (
                    f"{resident:.0%} of the weights stayed in memory: another process has them "
                    "mapped, or they lie on a file system without a disk"
                )
                return self._row(block, mode, position, arm, "unsupported", reason)
            return self._measure(block, mode, position, arm, folder, caches)
        except LaunchError as error:
            return self._row(block, mode, position, arm, error.kind, str(error))
        finally:
            if mode == "cold":
                shutil.rmtree(caches, ignore_errors=True)

    def _evict(self) -> float:
        directory = Path(self.plan.model)
        files = weight_files(directory) if directory.is_dir() else []
        if not files:
            raise LaunchError(
                f"{self.plan.model} is no directory with weights, so they cannot be put out of "
                "memory: give the model's directory, or leave disk-cold out of --modes",
                "unsupported",
            )
        try:
            evict(files)
            return resident_share(files)
        except OSError as error:
            raise LaunchError(
                f"the weights cannot be put out of memory: {error.strerror or error}", "unsupported"
            ) from error

    def _measure(
        self, block: int, mode: str, position: int, arm: Arm, folder: Path, caches: Path
    ) -> Row:
        with SpanReceiver() as receiver:
            server = self._server(arm, folder, caches, receiver.endpoint)
            follower = LogFollower(server.log_path)
            try:
                spawned = time.time()
                try:
                    server.start()
                except LaunchError:
                    if not (self.traced and "OpenTelemetry is not available" in server.log_text()):
                        raise
                    self.traced = False
                    self.notes.append(
                        "vLLM has no OpenTelemetry here: the stages are from its log alone."
                    )
                    follower.stop()
                    return self._measure(block, mode, position, arm, folder, caches)
                moments = Moments(spawned, time.time())
                tokens = _tokens(server)
                time.sleep(FLUSH_SECONDS if self.traced else 0.0)
            finally:
                server.stop()
                follower.stop()
            spans = receiver.take()
        log = server.log_text()
        found = stages(spans, follower.lines, moments)
        return self._judged(block, mode, position, arm, folder, log, found, tokens)

    def _judged(
        self,
        block: int,
        mode: str,
        position: int,
        arm: Arm,
        folder: Path,
        log: str,
        found: Stages,
        tokens: Mapping[str, float],
    ) -> Row:
        treatment = read_treatment(log)
        shown = treatment.record()
        if shown is not None:
            self.plans[arm.name] = shown
            said = f"plan {treatment.plan}, on: {', '.join(sorted(treatment.working)) or 'nothing'}"
            self.evidence[arm.name] = [said]
        metrics = {**found.seconds, **tokens, **launch_facts(log)}
        details = {"log": str(folder / "server.log"), "sources": found.sources}
        problem = treatment_problem(arm, treatment)
        if found.problem:
            return self._row(block, mode, position, arm, "error", found.problem)
        if problem is not None:
            return self._row(
                block, mode, position, arm, problem.status, problem.sentence, metrics, details
            )
        return self._row(block, mode, position, arm, "ok", "", metrics, details)

    def _row(
        self,
        block: int,
        mode: str,
        position: int,
        arm: Arm,
        status: str,
        reason: str,
        metrics: Mapping[str, float] | None = None,
        details: Mapping[str, object] | None = None,
    ) -> Row:
        return Row(
            block=block,
            arm=arm.name,
            level={"mode": mode},
            status=status,
            order=self.plan.order(block),
            position=position,
            reason=reason,
            metrics=dict(metrics or {}),
            details=dict(details or {}),
        )

    def _server(self, arm: Arm, folder: Path, caches: Path, endpoint: str) -> ArmServer:
        directories = {variable: str(caches / name) for variable, name in CACHES.items()}
        for directory in directories.values():
            Path(directory).mkdir(parents=True, exist_ok=True)
        tracing = (ENDPOINT, endpoint) if self.traced else ()
        return ArmServer(
            self.settings,
            self.plan.model,
            f"{arm.name}-{time.monotonic_ns() % 10**9}",
            folder,
            (*self.plan.serve_arguments, *arm.serve_arguments, *tracing),
            {**arm.environment, **directories, **(TRACING if self.traced else {})},
        )


def _tokens(server: ArmServer) -> dict[str, float]:
    """Seconds to one token, at the first request and at the fastest of those after it."""
    body = {
        "model": server.served_name,
        "prompt": [1, 2, 3, 4],  # token ids: a tokenizer may know none of the words of a text
        "max_tokens": 1,
        "temperature": 0,
    }
    taken = []
    for _ in range(1 + STEADY_REQUESTS):
        begin = time.monotonic()
        try:
            server.post("/v1/completions", body, seconds=600.0)
        except OSError as error:
            said = cause(server.log_text())
            raise LaunchError(
                server.died() or f"the first requests failed ({error}); its log: {said}"
            ) from None
        taken.append(time.monotonic() - begin)
    return {"first_token_s": taken[0], "steady_token_s": min(taken[1:])}


class LogFollower:
    """Reads a log while it is written and notes when each line arrived (to 50 ms)."""

    INTERVAL = 0.05

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lines: list[LogLine] = []
        self._rest = b""
        self._offset = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read what is left; may be called twice."""
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(self.INTERVAL):
            self._read()
        self._read()

    def _read(self) -> None:
        now = time.time()
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            if file.seek(0, 2) < self._offset:  # the server was started anew, on another port
                self._offset, self._rest, self.lines = 0, b"", []
            file.seek(self._offset)
            data = file.read()
            self._offset += len(data)
            *whole, self._rest = (self._rest + data).split(b"\n")
            self.lines += [LogLine(now, line.decode(errors="replace")) for line in whole]
