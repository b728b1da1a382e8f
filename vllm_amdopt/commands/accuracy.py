"""`vllm-amdopt accuracy`: whether an arm answers as the first one does; runs vLLM in subprocesses.

Exit code 0: no difference beyond the limits; 1: one was found; 2: the command line is at fault;
3: undecided, with --require-conclusive; 4: an arm could not be measured; 5: the GPUs are taken;
130: interrupted.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vllm_amdopt.accuracy import logits, tasks
from vllm_amdopt.accuracy.cells import parse_cells
from vllm_amdopt.accuracy.records import logits_record, tasks_record
from vllm_amdopt.accuracy.task_items import (
    GENERATED,
    Task,
    generate,
    read_gsm8k,
    read_prompts,
    read_task_file,
)
from vllm_amdopt.accuracy.task_run import Evaluation, missing_lm_eval
from vllm_amdopt.bench.gpu_choice import choose_gpus, wanted_count
from vllm_amdopt.bench.gpu_lock import BusyError, Locks, lock_directory
from vllm_amdopt.bench.gpu_use import Machine
from vllm_amdopt.bench.plan import Arm, parse_arm, parse_duration, parse_share, words
from vllm_amdopt.bench.server import ServerSettings
from vllm_amdopt.commands.facts import gather
from vllm_amdopt.commands.measured_on import machine, software
from vllm_amdopt.run_record import FILE_NAME, RunRecord, save

STOCK = "stock:VLLM_AMDOPT=0"
PLUGIN = "plugin:VLLM_AMDOPT=1"
BUSY = 5
CELLS = "1x128,2x128,8x128,64x128,1x2048,8x2048,1x16384,8x128+2x2048"
"""Batches on both sides of the graph sizes and of the small-batch kernels, contexts of one and of
many splits, and prompts that join while others decode."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `accuracy logits` and `accuracy tasks`."""
    checks = parser.add_subparsers(dest="accuracy_command", metavar="CHECK", required=True)
    one = checks.add_parser(
        "logits",
        help="next-token distributions along the same tokens",
        description="Draw tokens in the first arm, make every arm follow them through vLLM's own "
        "serving path, and compare the next-token distributions. Limits: docs/accuracy.md.",
        allow_abbrev=False,
    )
    _add_common(one)
    one.add_argument(
        "--cells",
        default=CELLS,
        metavar="NxC,...",
        help="requests times prompt tokens; 8x128+2x2048 lets longer prompts join while the "
        f"others decode (default: {CELLS}; what does not fit max_model_len is left out)",
    )
    one.add_argument("--tokens", type=int, default=32, metavar="N", help="forced in each request")
    one.add_argument("--top", type=int, default=32, metavar="K", help="tokens of a distribution")
    one.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="JSON lines with `prompt`, to cut prompts from (default: generated text)",
    )
    two = checks.add_parser(
        "tasks",
        help="answers to the same questions, by lm-eval",
        description="Serve each arm, let lm-eval put the same questions to it, and compare the "
        "answers item by item.",
        allow_abbrev=False,
    )
    _add_common(two)
    two.add_argument(
        "--tasks",
        metavar="NAME,...",
        help=f"generated ones: {', '.join(GENERATED)} (default: all of them, or none where "
        "--task-file or --gsm8k is given)",
    )
    two.add_argument("--items", type=int, default=100, metavar="N", help="of each task, at most")
    two.add_argument("--seed", type=int, default=0, metavar="N", help="of generated questions")
    two.add_argument(
        "--needle-characters", type=int, default=6000, metavar="N", help="of text around a needle"
    )
    two.add_argument(
        "--task-file",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="JSON lines with `prompt` and `answer`; may be repeated",
    )
    two.add_argument(
        "--gsm8k",
        type=Path,
        metavar="FILE",
        help="JSON lines with `question` and `answer` (#### N)",
    )
    two.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests in flight")
    two.add_argument(
        "--margin", default="1%", metavar="SHARE", help="loss to be excluded (default: 1%%)"
    )
    two.add_argument("--request-timeout", default="300s", metavar="TIME", help="of one answer")
    two.add_argument("--ready-timeout", default="30m", metavar="TIME", help="of a server")
    two.add_argument("--port", type=int, metavar="N", help="tried first")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="directory or name of the model")
    parser.add_argument(
        "--a", default=STOCK, metavar="NAME:VAR=VALUE,...", help=f"the first arm (default: {STOCK})"
    )
    parser.add_argument(
        "--b",
        action="append",
        default=[],
        metavar="NAME:VAR=VALUE,...",
        help=f"an arm to hold against it; may be repeated (default: {PLUGIN})",
    )
    parser.add_argument("--serve-args", default="", metavar="ARGS", help="of vLLM, in every arm")
    for arm, which in (("a", "the first arm"), ("b", "the other arms")):
        parser.add_argument(
            f"--{arm}-serve-args", default="", metavar="ARGS", help=f"of vLLM, in {which} only"
        )
    parser.add_argument(
        "--gpus", metavar="auto|0,1|none", default="auto", help="locked during the run"
    )
    parser.add_argument("--wait-gpus", metavar="TIME", default="0s", help="until they are free")
    parser.add_argument("--arm-timeout", default="1h", metavar="TIME", help="of one launch")
    parser.add_argument("--require-conclusive", action="store_true", help="exit code 3 if not")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="(default: runs/accuracy-CHECK-MODEL-TIME)"
    )


def run(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Run one check. ValueError, with a sentence, where the options cannot be one."""
    check = _logits if options.accuracy_command == "logits" else _tasks
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return check(options, environment)
    except BusyError as error:
        print(f"vllm-amdopt: {error}", file=sys.stderr)
        return BUSY
    except KeyboardInterrupt:
        print("interrupted; every engine and server is ended", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    """A terminated run ends what it started, as one that Ctrl-C interrupts does."""
    raise KeyboardInterrupt


def _logits(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    for name in ("tokens", "top"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} counts from 1")
    if options.prompts is not None:
        prompts = read_prompts(options.prompts)
    else:
        kinds = ("recall", "arithmetic", "copy", "needle")
        items = (item for kind in kinds for item in generate(kind, 40).items)
        prompts = tuple(item.prompt for item in items)
    settings = logits.Settings(
        model=options.model,
        arms=_arms(options),
        cells=parse_cells(options.cells),
        tokens=options.tokens,
        top=options.top,
        prompts=prompts,
        serve_args=words(options.serve_args, "--serve-args"),
        seconds=parse_duration(options.arm_timeout, "--arm-timeout"),
        folder=_folder(options),
        environment=environment,
    )
    with _gpus(options, environment) as visible:
        settings = replace(settings, environment={**environment, **visible})
        result = logits.compare_arms(settings, _say)
    record = logits_record(result, **_measured_on(options, environment))
    _show(logits.HEAD, logits.table(result))
    return _finish(
        logits.conclusions(result),
        record,
        settings.folder,
        result.exit_code(options.require_conclusive),
    )


def _tasks(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    if missing := missing_lm_eval():
        raise ValueError(missing)
    if options.concurrency < 1:
        raise ValueError("--concurrency counts from 1")
    settings = tasks.Settings(
        model=options.model,
        arms=_arms(options),
        tasks=_chosen_tasks(options),
        serve_args=words(options.serve_args, "--serve-args"),
        evaluation=Evaluation(
            concurrency=options.concurrency,
            request_seconds=round(parse_duration(options.request_timeout, "--request-timeout")),
            seconds=parse_duration(options.arm_timeout, "--arm-timeout"),
        ),
        margin=parse_share(options.margin, "--margin"),
        folder=_folder(options),
        server=ServerSettings(
            base_environment=environment,
            ready_seconds=parse_duration(options.ready_timeout, "--ready-timeout"),
            port=options.port,
        ),
    )
    with _gpus(options, environment) as visible:
        server = replace(settings.server, base_environment={**environment, **visible})
        result = tasks.compare_arms(replace(settings, server=server), _say)
    record = tasks_record(result, **_measured_on(options, environment))
    _show(tasks.HEAD, tasks.table(result))
    return _finish(
        tasks.conclusions(result),
        record,
        settings.folder,
        result.exit_code(options.require_conclusive),
    )


# --- reading the options ------------------------------------------------------------------------


def _arms(options: argparse.Namespace) -> tuple[Arm, ...]:
    others = options.b or [PLUGIN]
    arms = (
        parse_arm(options.a, options.a_serve_args, "--a"),
        *(parse_arm(text, options.b_serve_args, "--b") for text in others),
    )
    names = [arm.name for arm in arms]
    if len(set(names)) != len(names):
        raise ValueError(f"two arms are called {max(names, key=names.count)!r}: rename one")
    return arms


def _chosen_tasks(options: argparse.Namespace) -> tuple[Task, ...]:
    if options.items < 1:
        raise ValueError("--items counts from 1")
    own = []
    for text in options.task_file:
        name, equals, path = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--task-file {text!r}: write NAME=FILE, with letters in NAME")
        own.append(read_task_file(name, Path(path), options.items))
    if options.gsm8k is not None:
        own.append(read_gsm8k(options.gsm8k, options.items))
    if options.tasks is None:
        names: Sequence[str] = () if own else tuple(GENERATED)
    else:
        names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    for name in names:
        if name not in GENERATED:
            raise ValueError(f"--tasks {name!r}: the generated ones are {', '.join(GENERATED)}")
    generated = (
        generate(name, options.items, options.seed, options.needle_characters) for name in names
    )
    return (*generated, *own)


@contextmanager
def _gpus(
    options: argparse.Namespace, environment: Mapping[str, str]
) -> Iterator[Mapping[str, str]]:
    """The variables that keep a run on GPUs that nobody else uses; without a GPU, the machine is
    locked, because two engines would share its cores. BusyError where others have them."""
    arguments = f"{options.serve_args} {options.a_serve_args} {options.b_serve_args}"
    locks = Locks(lock_directory(environment))
    try:
        choice = choose_gpus(
            options.gpus,
            wanted_count(words(arguments, "--serve-args")),
            Machine(),
            locks,
            environment,
            wait_seconds=parse_duration(options.wait_gpus, "--wait-gpus"),
            on_wait=lambda who: _say(f"waiting: {who}"),
            purpose=f"vllm-amdopt accuracy {options.accuracy_command}",
        )
        yield choice.environment
    finally:
        locks.release()


def _folder(options: argparse.Namespace) -> Path:
    folder: Path | None = options.out
    if folder is None:
        model = Path(options.model.rstrip("/")).name
        time = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
        folder = Path("runs") / f"accuracy-{options.accuracy_command}-{model}-{time}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: name another directory with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be made: {error.strerror}") from error
    return folder.resolve()


def _measured_on(options: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, Any]:
    facts = gather(environment)
    return {
        "machine": machine(facts),
        "software": software(facts),
        "commands": (shlex.join(["vllm-amdopt", *options.command_line]),),
    }


# --- saying what came out -----------------------------------------------------------------------


def _say(line: str) -> None:
    print(f"[{datetime.now(UTC):%H:%M:%S}] {line}", flush=True)


def _show(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with every cell on one line: numbers are compared down a column."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def _finish(sentences: Sequence[str], record: RunRecord, folder: Path, code: int) -> int:
    path = folder / FILE_NAME
    save(record, path)
    print()
    for sentence in sentences:
        print(sentence)
    print(f"record: {path}")
    return code
