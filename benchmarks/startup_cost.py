"""Measures what the plugin costs before the first token; it measures no kernel and no request.

    python -m benchmarks.startup_cost [--runs 7] [--engine-runs 3] [--json FILE]

Each run is a fresh process, the arms take turns, and the first turn is thrown away because it
fills the file cache. Wall time is what a user waits; processor time (user and system, all
processes of the run) hardly changes when the machine is busy with something else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.serving import CACHES, QUIET_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "tests" / "models" / "checkpoints" / "llama-gqa"

ENGINE_PROGRAM = """
from vllm import LLM
LLM(model=sys.argv[1], enforce_eager=True, max_model_len=512, kv_cache_memory_bytes=64 << 20,
    disable_log_stats=True)
"""
"""Everything that `vllm serve` does before it listens, in one process: no request is sent."""

OWN_WORK_PROGRAM = (
    """
import json, time
from vllm_amdopt.integration import faults, plugin
spent, depth = {}, 0
def timed(name, function):
    def run(*arguments, **named):
        global depth
        depth += 1
        wall, processor = time.perf_counter(), time.thread_time()
        try:
            return function(*arguments, **named)
        finally:
            depth -= 1
            if depth == 0:
                old = spent.get(name, (0.0, 0.0))
                spent[name] = (old[0] + time.perf_counter() - wall,
                               old[1] + time.thread_time() - processor)
    return run
plugin.register_platform = timed("register_platform", plugin.register_platform)
plugin.register = timed("register", plugin.register)
attempt = faults.attempt
faults.attempt = lambda hook, *arguments: timed(hook, attempt)(hook, *arguments)
import vllm.platforms.cpu
"""
    + ENGINE_PROGRAM
    + """
print("OWN_WORK", json.dumps(spent), flush=True)
"""
)
"""The same, with a clock around each of the plugin's hooks. A hook that is the first to import a
module of vLLM's pays for it here, so that the sum is an upper bound of the plugin's own share."""


@dataclass(frozen=True)
class Arm:
    """One command that is measured, and the arm that its cost is counted from."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    counted_from: str | None = None


@dataclass(frozen=True)
class Measured:
    """Seconds of all kept runs of an arm."""

    wall: tuple[float, ...]
    processor: tuple[float, ...]

    @property
    def wall_median(self) -> float:
        return statistics.median(self.wall)

    @property
    def processor_median(self) -> float:
        return statistics.median(self.processor)


def command_arms() -> list[Arm]:
    python = sys.executable
    tool = str(Path(python).with_name("vllm-amdopt"))
    bare = "python -c pass"
    return [
        Arm(bare, (python, "-c", "pass"), {}),
        Arm("import vllm_amdopt", (python, "-c", "import vllm_amdopt"), {}, bare),
        Arm(
            "import the entry points",
            (python, "-c", "import vllm_amdopt.integration.plugin"),
            {},
            bare,
        ),
        Arm("vllm-amdopt --help", (tool, "--help"), {}),
        Arm("vllm-amdopt features", (tool, "features"), {}),
        Arm("vllm-amdopt explain", (tool, "explain", str(MODEL)), {}),
        Arm("vllm-amdopt explain --gpu", (tool, "explain", "--gpu", "MI300X", str(MODEL)), {}),
    ]


def engine_arms() -> list[Arm]:
    command = (sys.executable, "-c", "import sys\n" + ENGINE_PROGRAM, str(MODEL))
    without = "engine start, plugin not loaded"
    settings: dict[str, dict[str, str]] = {
        without: {"VLLM_PLUGINS": ""},
        "engine start, VLLM_AMDOPT=0": {"VLLM_AMDOPT": "0"},
        "engine start, VLLM_AMDOPT unset": {},
        "engine start, =1, reference": {
            "VLLM_AMDOPT": "1",
            "VLLM_AMDOPT_CPU_ENGINE": "reference",
        },
        "engine start, =1, reference, QUICK_IMPORTS=0": {
            "VLLM_AMDOPT": "1",
            "VLLM_AMDOPT_CPU_ENGINE": "reference",
            "VLLM_AMDOPT_QUICK_IMPORTS": "0",
        },
        "engine start, =1, emulated gfx942": {"VLLM_AMDOPT": "1"},
    }
    fixed = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CACHE_ROOT": str(CACHES / "vllm"),
        "TRITON_CACHE_DIR": str(CACHES / "triton"),
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    return [
        Arm(name, command, {**fixed, **changes}, None if name == without else without)
        for name, changes in settings.items()
    ]


def run_once(arm: Arm) -> tuple[float, float]:
    """Wall and processor seconds of one fresh process and its children."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
    environment.update(QUIET_ENVIRONMENT)
    environment.update(arm.environment)
    log = CACHES / "startup_cost.log"
    with log.open("ab") as output:
        files = [
            (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
        ]
        begin = time.perf_counter()
        child = os.posix_spawn(arm.command[0], arm.command, environment, file_actions=files)
        try:
            _, status, usage = os.wait4(child, 0)
        except BaseException:
            os.kill(child, 15)
            os.waitpid(child, 0)
            raise
        wall = time.perf_counter() - begin
    if status != 0:
        raise RuntimeError(f"`{arm.name}` failed; its output is at the end of {log}")
    return wall, usage.ru_utime + usage.ru_stime


def measure(arms: Sequence[Arm], runs: int) -> dict[str, Measured]:
    """Runs every arm once per round, `runs` rounds after a first one that is not kept."""
    kept: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms}
    for turn in range(runs + 1):
        for arm in arms:
            result = run_once(arm)
            if turn > 0:
                kept[arm.name].append(result)
        print(f"  round {turn}/{runs} done", file=sys.stderr, flush=True)
    return {
        name: Measured(tuple(wall for wall, _ in results), tuple(cpu for _, cpu in results))
        for name, results in kept.items()
    }


def table(arms: Sequence[Arm], measured: Mapping[str, Measured]) -> str:
    """A Markdown table: medians, range of the wall time, and the difference to the base arm."""
    lines = [
        "| what | wall, median (range) | processor, median | more than its base: wall, processor |",
        "|---|---|---|---|",
    ]
    for arm in arms:
        this = measured[arm.name]
        more = "–"
        if arm.counted_from is not None:
            base = measured[arm.counted_from]
            more = (
                f"{this.wall_median - base.wall_median:+.3f} s, "
                f"{this.processor_median - base.processor_median:+.3f} s"
            )
        lines.append(
            f"| {arm.name} | {this.wall_median:.3f} s ({min(this.wall):.3f}–{max(this.wall):.3f}) "
            f"| {this.processor_median:.3f} s | {more} |"
        )
    return "\n".join(lines)


def measure_own_work(runs: int) -> dict[str, tuple[float, float]]:
    """Median wall and processor seconds of each hook with the reference engine, largest first."""
    arm = next(arm for arm in engine_arms() if arm.name.endswith("reference"))
    program = "import sys\n" + OWN_WORK_PROGRAM
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
    kept: dict[str, list[tuple[float, float]]] = {}
    for turn in range(runs + 1):
        done = subprocess.run(
            [sys.executable, "-c", program, str(MODEL)],
            env={**environment, **QUIET_ENVIRONMENT, **arm.environment},
            capture_output=True,
            text=True,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("OWN_WORK ")]
        if not lines:
            raise RuntimeError(f"the engine did not start:\n{done.stderr[-2000:]}")
        if turn > 0:
            for hook, times in json.loads(lines[0].removeprefix("OWN_WORK ")).items():
                kept.setdefault(hook, []).append(tuple(times))
    medians = {
        hook: (statistics.median(w for w, _ in times), statistics.median(c for _, c in times))
        for hook, times in kept.items()
    }
    return dict(sorted(medians.items(), key=lambda item: -item[1][1]))


def own_work_table(own: Mapping[str, tuple[float, float]]) -> str:
    lines = ["| hook | wall, median | processor, median |", "|---|---|---|"]
    lines += [f"| {hook} | {wall:.3f} s | {cpu:.3f} s |" for hook, (wall, cpu) in own.items()]
    walls, processors = zip(*own.values(), strict=True)
    lines.append(f"| all | {sum(walls):.3f} s | {sum(processors):.3f} s |")
    return "\n".join(lines)


def machine() -> dict[str, object]:
    """What the numbers hold for."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else ""
    return {
        "processor": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("vllm", "torch", "triton", "vllm-amdopt")},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.startup_cost")
    parser.add_argument("--runs", type=int, default=7, help="kept runs of each command")
    parser.add_argument("--engine-runs", type=int, default=3, help="kept runs of each engine start")
    parser.add_argument("--json", type=Path, default=CACHES / "startup_cost.json")
    options = parser.parse_args(arguments)
    CACHES.mkdir(exist_ok=True)
    where = machine()
    arms = command_arms()
    measured = measure(arms, options.runs)
    own: dict[str, tuple[float, float]] = {}
    if options.engine_runs > 0:
        own = measure_own_work(options.engine_runs)
        measured.update(measure(engine_arms(), options.engine_runs))
        arms += engine_arms()
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print(table(arms, measured))
    if own:
        print("\n" + own_work_table(own))
    record = {
        "machine": where,
        "own_work_seconds": own,
        "arms": {
            name: {"wall_seconds": result.wall, "processor_seconds": result.processor}
            for name, result in measured.items()
        },
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nall runs: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
