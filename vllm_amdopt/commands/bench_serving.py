"""`vllm-amdopt bench ab`, `aa` and `ablate`: plan, lock, run, record, and say what it means."""

import argparse
import fcntl
import json
import os
import platform
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_amdopt.bench.client_ceiling import load_ceilings
from vllm_amdopt.bench.gpu_choice import Choice, choose_gpus, wanted_count
from vllm_amdopt.bench.gpu_lock import BusyError, Locks, lock_directory
from vllm_amdopt.bench.gpu_use import Machine
from vllm_amdopt.bench.journal import NAME as JOURNAL
from vllm_amdopt.bench.journal import Journal, Progress, differences
from vllm_amdopt.bench.launch import DiskFullError, GpusBusyError, Launcher, LaunchSettings
from vllm_amdopt.bench.load import LoadClient, bench_arguments
from vllm_amdopt.bench.plan import Plan, PlanError, parse_duration, words
from vllm_amdopt.bench.presets import preset
from vllm_amdopt.bench.progress import Reporter, Timing, clock
from vllm_amdopt.bench.runner import Outcome, Runner
from vllm_amdopt.bench.server import ServerSettings, default_program
from vllm_amdopt.bench.serving_record import serving_record
from vllm_amdopt.commands import measured_on
from vllm_amdopt.commands.bench_client import ceiling_path
from vllm_amdopt.commands.bench_conclusion import EXIT_INVALID, conclude, provisional
from vllm_amdopt.commands.bench_options import (
    add_aa_arguments,
    add_ab_arguments,
    add_ablate_arguments,
    plan_of,
)
from vllm_amdopt.commands.facts import gather
from vllm_amdopt.run_record import FILE_NAME, RecordError, save

__all__ = ["add_aa_arguments", "add_ab_arguments", "add_ablate_arguments"]

EXIT_ENVIRONMENT = 2
EXIT_BUSY = 5
EXIT_INTERRUPTED = 130


def run_ab(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Run `bench ab`; its exit code."""
    return _run(options, environment)


def run_aa(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Run `bench aa`; its exit code."""
    return _run(options, environment)


def run_ablate(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Run `bench ablate`; its exit code."""
    return _run(options, environment)


@dataclass(frozen=True)
class Times:
    """The times among the options, in seconds."""

    wait_gpus: float
    ready: float
    run: float
    cooldown: float
    budget: float | None

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Times":
        return cls(
            wait_gpus=parse_duration(options.wait_gpus, "--wait-gpus"),
            ready=parse_duration(options.ready_timeout, "--ready-timeout"),
            run=parse_duration(options.run_timeout, "--run-timeout"),
            cooldown=parse_duration(options.cooldown, "--cooldown"),
            budget=parse_duration(options.budget, "--budget") if options.budget else None,
        )


def _run(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    plan = plan_of(options)
    times = Times.of(options)
    program = words(options.serve_program or "", "--serve-program") or default_program()
    name = plan.model.rstrip("/").rpartition("/")[2] or "model"
    out: Path = options.out or Path("runs") / f"{options.bench_command}-{name}"
    if options.dry_run:
        print(describe(plan, program, out, times))
        return 0
    reporter = Reporter(sys.stderr, options.progress)
    locks = Locks(lock_directory(environment))
    try:
        with own_directory(out), interruptible():
            choice = choose_gpus(
                options.gpus,
                wanted_count((*plan.serve_arguments, *plan.arms[-1].serve_arguments)),
                Machine(),
                locks,
                environment,
                wait_seconds=times.wait_gpus,
                on_wait=lambda who: reporter.status(f"waiting: {who}"),
                purpose=f"vllm-amdopt bench {options.bench_command} {name}",
            )
            return _measure(options, environment, plan, times, program, out, choice, reporter)
    except (BusyError, GpusBusyError) as error:
        print(f"vllm-amdopt: {error}", file=sys.stderr)
        return EXIT_BUSY
    except (DiskFullError, RecordError) as error:
        print(f"vllm-amdopt: {error}", file=sys.stderr)
        return EXIT_ENVIRONMENT
    except OSError as error:
        print(
            f"vllm-amdopt: {out} cannot be written or read ({error.strerror or error}); mend that, "
            "then go on with --resume",
            file=sys.stderr,
        )
        return EXIT_ENVIRONMENT
    except KeyboardInterrupt:
        print(
            f"\nvllm-amdopt: interrupted; all servers are ended, and what was measured is in {out}:"
            " the same command with --resume goes on from there",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    finally:
        locks.release()


def _measure(
    options: argparse.Namespace,
    environment: Mapping[str, str],
    plan: Plan,
    times: Times,
    program: tuple[str, ...],
    out: Path,
    choice: Choice,
    reporter: Reporter,
) -> int:
    facts = gather(environment)
    machine, software = measured_on.machine(facts), measured_on.software(facts)
    if choice.identities:
        machine["gpus_used"] = list(choice.identities)
    model = measured_on.model(plan.model)
    ceilings = load_ceilings(ceiling_path(environment), platform.node())
    if options.preset and preset(options.preset).needs_calibration and not ceilings:
        raise PlanError(
            f"--preset {options.preset} needs the load generator's ceiling on this machine: run "
            f"`vllm-amdopt bench calibrate-client {plan.model}` first"
        )
    journal = Journal(out / JOURNAL)
    fingerprint = measured_on.fingerprint(machine, software, model)
    progress, notes = _begin(options, plan, journal, fingerprint)
    (out / "plan.json").write_text(json.dumps(plan.to_dict(), indent=1))
    timing = Timing()
    settings = LaunchSettings(
        out=out,
        server=ServerSettings(
            {**environment, **choice.environment},
            program,
            ready_seconds=times.ready,
            port=options.port,
        ),
        gpu_indices=choice.indices,
        run_seconds=times.run,
        cooldown_seconds=times.cooldown,
        free_disk_bytes=options.min_free_disk << 20,
    )
    drive = LoadClient(environment, out / "load-generator.log")
    launcher = Launcher(plan, settings, drive, reporter, timing)
    runner = Runner(
        plan,
        launcher,
        journal,
        progress,
        reporter,
        timing,
        retries=options.retries,
        budget_seconds=times.budget,
        so_far=lambda rows: provisional(
            serving_record(plan, Outcome(rows=rows), machine={}, software={}, model={}, commands=())
        ),
    )
    blocks_left = plan.blocks - sum(1 for block in progress.blocks if block >= 0)
    reporter.event(
        "begin",
        f"{plan.model}: {' against '.join(arm.name for arm in plan.arms)}, {blocks_left} blocks, "
        f"about {clock(runner.remaining_seconds(blocks_left))}; in {out}",
    )
    try:
        outcome = runner.run()
    finally:
        drive.close()
    record = serving_record(
        plan,
        outcome,
        machine=machine,
        software=software,
        model=model,
        commands=[reproduction(options)],
        notes=notes,
        ceilings=ceilings,
    )
    save(record, out / FILE_NAME)
    text, code = conclude(record, require_conclusive=options.require_conclusive)
    print(text)
    for note in record.notes:
        print(f"note: {note}")
    print(f"The record is {out / FILE_NAME}; `vllm-amdopt report {out}` shows it.")
    return EXIT_INVALID if outcome.invalid else code


def _begin(
    options: argparse.Namespace, plan: Plan, journal: Journal, fingerprint: Mapping[str, Any]
) -> tuple[Progress, list[str]]:
    """The progress so far; PlanError where the directory holds something else."""
    progress = journal.read()
    notes: list[str] = []
    if progress.plan_digest is None:
        journal.append("plan", digest=plan.digest, fingerprint=fingerprint)
        return progress, notes
    if not options.resume:
        raise PlanError(
            f"{journal.path.parent} holds a run already: go on with it by --resume, or give "
            "another directory with --out"
        )
    if progress.plan_digest != plan.digest:
        raise PlanError(
            f"the run in {journal.path.parent} was of another plan (see plan.json there): repeat "
            "its options, or give another directory with --out"
        )
    changed = differences(progress.fingerprint, fingerprint)
    if changed and not options.allow_drift:
        raise PlanError(
            f"the machine changed since the run began ({'; '.join(changed[:3])}): start anew with "
            "another --out, or accept it with --allow-drift"
        )
    if changed:
        notes.append(f"Resumed although the machine had changed: {'; '.join(changed)}.")
    if progress.truncated:
        notes.append("The journal ended in the middle of a line; that line's step was repeated.")
    return progress, notes


@contextmanager
def own_directory(out: Path) -> Iterator[None]:
    """The directory, for this run alone."""
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another run writes to {out}: wait for it, or give another directory with --out"
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def interruptible() -> Iterator[None]:
    """A polite end from outside (a container that stops) is treated as Ctrl-C."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- words --------------------------------------------------------------------------------------


def reproduction(options: argparse.Namespace) -> str:
    """The command that was typed, with --resume left out."""
    return shlex.join(
        ["vllm-amdopt", *(word for word in options.command_line if word != "--resume")]
    )


def describe(plan: Plan, program: tuple[str, ...], out: Path, times: Times) -> str:
    """What a run would do: order, commands, time."""
    launches = plan.blocks * len(plan.arms) + (len(plan.arms) if plan.pre_block else 0)
    seconds = Timing().estimate(launches, launches * plan.runs_per_launch())
    lines = [
        f"{plan.kind} of {plan.model}, plan {plan.digest}, to {out}",
        f"{plan.blocks} blocks in the order "
        + " ".join(plan.order_name(block) for block in range(plan.blocks)),
        f"{launches} launches, {launches * plan.runs_per_launch()} runs of the load generator, "
        f"about {clock(seconds)} (assuming 90 s a launch and 30 s a run)",
        f"decided by {plan.primary}"
        + (f", and {', '.join(plan.gated)}" if plan.gated else "")
        + f", margin {plan.margin:.1%}",
    ]
    if plan.preset:
        chosen = preset(plan.preset)
        lines.append(f"preset {chosen.name}: {chosen.description}; source: {chosen.source}")
        lines += [
            f"  {label}: {text}"
            for label, text in (("it says", chosen.source_says), ("assumed", chosen.assumed))
            if text
        ]
    if times.budget is not None:
        lines.append(f"no block is begun that would end after {clock(times.budget)}")
    for arm in plan.arms:
        variables = " ".join(shlex.quote(f"{k}={v}") for k, v in arm.environment.items())
        command = shlex.join([*program, plan.model, *plan.serve_arguments, *arm.serve_arguments])
        lines.append(f"arm {arm.name}: {variables} {command}".replace("  ", " "))
    for level in plan.levels:
        arguments = bench_arguments(
            level,
            base_url="http://127.0.0.1:PORT",
            served_name="NAME",
            tokenizer=plan.model,
            prompts=level.prompts,
            seed=plan.request_seed(0, level, 0),
        )
        lines.append(f"load {level.label}: {shlex.join(['vllm', *arguments])}")
    return "\n".join(lines)
