"""`vllm-amdopt bench startup`: how long servers take to start, by stage, arms in turns."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vllm_amdopt.bench.analysis import analyse, exit_code
from vllm_amdopt.bench.gpu_choice import choose_gpus, wanted_count
from vllm_amdopt.bench.gpu_lock import BusyError, Locks, lock_directory
from vllm_amdopt.bench.gpu_use import Machine
from vllm_amdopt.bench.plan import PlanError, parse_arm, parse_duration, parse_share, words
from vllm_amdopt.bench.progress import Reporter
from vllm_amdopt.bench.report.build import build, verdict_line
from vllm_amdopt.bench.report.markdown import render_markdown
from vllm_amdopt.bench.server import ServerSettings, default_program
from vllm_amdopt.bench.startup_run import CACHES, ENDPOINT, MODES, StartupPlan, StartupRun
from vllm_amdopt.commands import measured_on
from vllm_amdopt.commands.bench_options import PLUGIN, STOCK
from vllm_amdopt.commands.bench_serving import interruptible, own_directory, reproduction
from vllm_amdopt.commands.facts import gather
from vllm_amdopt.run_record import (
    FILE_NAME,
    Arm,
    Judgement,
    RecordError,
    Row,
    RunRecord,
    load,
    new_record,
    save,
)

EXIT_ENVIRONMENT = 2
EXIT_BUSY = 5
EXIT_INTERRUPTED = 130


def add_startup_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--model", metavar="MODEL", required=True, help="directory or name")
    for option, default in (("--a", STOCK), ("--b", PLUGIN)):
        parser.add_argument(
            option, metavar="NAME:VAR=VALUE,...", default=default, help=f"(default: {default})"
        )
        parser.add_argument(f"{option}-serve-args", metavar="ARGS", default="")
    parser.add_argument("--serve-args", metavar="ARGS", default="", help="in every arm")
    parser.add_argument(
        "--modes",
        metavar="MODE,...",
        default="cold,warm",
        help=f"of {', '.join(MODES)} (default: cold,warm)",
    )
    parser.add_argument("--blocks", metavar="N", type=int, default=6, help="(default: 6)")
    parser.add_argument("--margin", metavar="SHARE", default="1%", help="(default: 1%%)")
    parser.add_argument("--require-conclusive", action="store_true", help="exit code 3 if not")
    parser.add_argument("--gpus", metavar="auto|0,1|none", default="auto", help="locked meanwhile")
    parser.add_argument("--wait-gpus", metavar="TIME", default="0s", help="until they are free")
    parser.add_argument("--port", metavar="N", type=int, help="tried first")
    parser.add_argument("--ready-timeout", metavar="TIME", default="60m", help="of a server")
    parser.add_argument("--out", metavar="DIR", type=Path, help="(default: runs/startup-MODEL)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    parser.add_argument(
        "--progress", choices=("auto", "terminal", "plain", "json", "none"), default="auto"
    )
    parser.add_argument(
        "--serve-program",
        metavar="COMMAND",
        help="what stands before the model (default: this environment's `vllm serve`)",
    )


def run_startup(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Run the command; its exit code."""
    plan = plan_of(options)
    margin = parse_share(options.margin, "--margin")
    wait = parse_duration(options.wait_gpus, "--wait-gpus")
    ready = parse_duration(options.ready_timeout, "--ready-timeout")
    program = words(options.serve_program or "", "--serve-program") or default_program()
    name = plan.model.rstrip("/").rpartition("/")[2] or "model"
    out: Path = options.out or Path("runs") / f"startup-{name}"
    if options.dry_run:
        print(describe(plan, program, out))
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
                wait_seconds=wait,
                on_wait=lambda who: reporter.status(f"waiting: {who}"),
                purpose=f"vllm-amdopt bench startup {name}",
            )
            settings = ServerSettings(
                {**environment, **choice.environment}, program, ready, options.port
            )
            record = _measure(options, environment, plan, margin, settings, out, reporter)
    except BusyError as error:
        print(f"vllm-amdopt: {error}", file=sys.stderr)
        return EXIT_BUSY
    except RecordError as error:
        print(f"vllm-amdopt: {error}", file=sys.stderr)
        return EXIT_ENVIRONMENT
    except OSError as error:
        said = error.strerror or error
        print(
            f"vllm-amdopt: {out} cannot be written or read ({said}); mend that, then go on with "
            "--resume",
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
    return _conclude(record, out, require_conclusive=options.require_conclusive)


def plan_of(options: argparse.Namespace) -> StartupPlan:
    """The plan; PlanError where the options cannot be one."""
    modes = tuple(dict.fromkeys(mode.strip() for mode in options.modes.split(",")))
    for mode in modes:
        if mode not in MODES:
            raise PlanError(f"--modes {options.modes!r}: {mode!r} is none of {', '.join(MODES)}")
    if options.blocks < 1:
        raise PlanError("--blocks counts from 1")
    arms = (
        parse_arm(options.a, options.a_serve_args, "--a"),
        parse_arm(options.b, options.b_serve_args, "--b"),
    )
    if arms[0].name == arms[1].name:
        raise PlanError(f"both arms are called {arms[0].name}: give them different names")
    common = words(options.serve_args, "--serve-args")
    for arm in arms:
        for variable in CACHES:
            if variable in arm.environment:
                raise PlanError(
                    f"{arm.name} sets {variable}, which `bench startup` sets itself to have cold "
                    "and warm caches: leave it out"
                )
        given = (*common, *arm.serve_arguments)
        if any(word.partition("=")[0].replace("_", "-") == ENDPOINT for word in given):
            raise PlanError(f"{ENDPOINT} is used to see the stages: leave it out")
    return StartupPlan(options.model, arms, modes, options.blocks, common)


def _measure(
    options: argparse.Namespace,
    environment: Mapping[str, str],
    plan: StartupPlan,
    margin: float,
    settings: ServerSettings,
    out: Path,
    reporter: Reporter,
) -> RunRecord:
    facts = gather(environment)
    machine, software = measured_on.machine(facts), measured_on.software(facts)
    path = out / FILE_NAME
    workload = {
        "model": plan.model,
        **measured_on.model(plan.model),
        "modes": list(plan.modes),
        "blocks_planned": plan.blocks,
    }

    def record(rows: Sequence[Row]) -> RunRecord:
        return new_record(
            "startup",
            [
                Arm(
                    arm.name,
                    arm.environment,
                    (*plan.serve_arguments, *arm.serve_arguments),
                    run.plans.get(arm.name),
                    tuple(run.evidence.get(arm.name, ())),
                )
                for arm in plan.arms
            ],
            rows=tuple(rows),
            title=f"Start-up of {plan.model.rstrip('/').rpartition('/')[2]}",
            machine=machine,
            software=software,
            workload=workload,
            judgement=Judgement("total_s", margin=margin),
            commands=(reproduction(options),),
            notes=(
                "Every start was traced, in both arms alike, which costs a little time itself.",
                "A start is over when the server answers; it is asked five times a second.",
                *run.notes,
            ),
        )

    run = StartupRun(plan, settings, out, reporter, keep=lambda rows: save(record(rows), path))
    run.rows += _kept_rows(path, record(()), options.resume)
    run.run()
    found = record(run.rows)
    save(found, path)
    return found


def _kept_rows(path: Path, now: RunRecord, resume: bool) -> list[Row]:
    """The rows of the run that is resumed; PlanError where the directory holds something else."""
    if not path.exists():
        return []
    if not resume:
        raise PlanError(
            f"{path.parent} holds a run already: go on with it by --resume, or give another "
            "directory with --out"
        )
    before = load(path)
    for what, same in (
        ("kind", before.kind == now.kind),
        (
            "arms",
            [replace(arm, plan=None, evidence=()) for arm in before.arms]
            == [replace(arm, plan=None, evidence=()) for arm in now.arms],
        ),
        ("workload", dict(before.workload) == dict(now.workload)),
        ("machine", before.machine == now.machine),
        ("software", before.software == now.software),
    ):
        if not same:
            raise PlanError(
                f"the run in {path.parent} had another {what}: repeat its options on its machine, "
                "or give another directory with --out"
            )
    return [row for row in before.rows if row.status == "ok"]


def _conclude(record: RunRecord, out: Path, *, require_conclusive: bool) -> int:
    report = build([record])
    tables = tuple(part for part in report.sections if part.title == "Start-up")
    print(render_markdown(replace(report, banners=(), sections=tables), folded=False))
    print(verdict_line(report))
    aside = [row for row in record.rows if row.status != "ok"]
    for row in aside[:5]:
        where = f"block {row.block + 1}, {row.level.get('mode')}, {row.arm}"
        print(f"{row.status}: {where}: {row.reason}")
    print(f"The record is {out / FILE_NAME}; `vllm-amdopt report {out}` shows it.")
    return exit_code(analyse(record), require_conclusive)


def describe(plan: StartupPlan, program: Sequence[str], out: Path) -> str:
    """What a run would do: order, caches, commands."""
    starts = list(plan.launches())
    first = [arm.name for arm in plan.arms] if set(plan.modes) - {"cold"} else []
    lines = [
        f"start-up of {plan.model}, to {out}",
        f"{len(starts)} starts: {plan.blocks} blocks in the order "
        + " ".join(plan.order(block) for block in range(plan.blocks))
        + f", each in the modes {', '.join(plan.modes)}",
    ]
    if first:
        lines.append(f"before that, one start each of {' and '.join(first)} fills the caches")
    lines.append(f"caches of compiled code, new for each cold start: {', '.join(CACHES)}")
    for arm in plan.arms:
        variables = " ".join(shlex.quote(f"{k}={v}") for k, v in arm.environment.items())
        command = shlex.join([*program, plan.model, *plan.serve_arguments, *arm.serve_arguments])
        lines.append(f"arm {arm.name}: {variables} {command} {ENDPOINT} URL".replace("  ", " "))
    return "\n".join(lines)
