"""`accuracy tasks`: the same questions to a server of each arm, compared item by item.

The arms are served one after the other: the first one, the first one again (what two launches of
the same thing flip), then the others.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vllm_amdopt.accuracy.replay import wrong_on_purpose
from vllm_amdopt.accuracy.task_folder import Samples, differing_hashes, write_tasks
from vllm_amdopt.accuracy.task_items import Task
from vllm_amdopt.accuracy.task_judgement import ALL_TASKS, Comparison, Verdict, compare, judge
from vllm_amdopt.accuracy.task_run import Evaluation, TaskRunError, run_tasks
from vllm_amdopt.bench.plan import Arm
from vllm_amdopt.bench.server import ArmServer, LaunchError, ServerSettings
from vllm_amdopt.bench.treatment import Treatment, read_treatment, treatment_problem

PASSED, FAILED, INCONCLUSIVE, INVALID = 0, 1, 3, 4
"""Exit codes; 2 is the command line's, 130 is Ctrl-C."""

FEWEST_ITEMS = 50
"""Fewer pairs cannot show a loss: with 50, six losses without a gain are needed for p < 0.05."""


@dataclass(frozen=True)
class Settings:
    """One comparison. `margin`: the loss, as a share of the items, that has to be excluded."""

    model: str
    arms: tuple[Arm, ...]
    tasks: tuple[Task, ...]
    serve_args: tuple[str, ...]
    evaluation: Evaluation
    margin: float
    folder: Path
    server: ServerSettings = field(repr=False)

    def __post_init__(self) -> None:
        items = sum(len(task.items) for task in self.tasks)
        if items < FEWEST_ITEMS:
            raise ValueError(
                f"{items} questions are too few to compare arms by, {FEWEST_ITEMS} are needed: "
                "raise --items, or name more tasks"
            )
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"two tasks are called {max(names, key=names.count)}: rename one")


@dataclass(frozen=True)
class ArmResult:
    """One arm against the first: `invalid` says why there is nothing to judge, or is empty."""

    arm: Arm
    compared: Mapping[str, Comparison] = field(default_factory=dict)
    verdict: Verdict | None = None
    invalid: str = ""
    treatment: Treatment = field(default_factory=Treatment)


@dataclass(frozen=True)
class TasksResult:
    """The whole comparison. `floor` is the first arm against its own repetition."""

    settings: Settings
    floor: Mapping[str, Comparison]
    others: tuple[ArmResult, ...]
    invalid: str = ""

    def exit_code(self, require_conclusive: bool = False) -> int:
        outcomes = [one.verdict.outcome for one in self.others if one.verdict is not None]
        if "failed" in outcomes:
            return FAILED
        if self.invalid or any(one.invalid for one in self.others):
            return INVALID
        if require_conclusive and "inconclusive" in outcomes:
            return INCONCLUSIVE
        return PASSED


def compare_arms(settings: Settings, say: Callable[[str], None]) -> TasksResult:
    """Serve and ask all arms; `say` gets a line for each step."""
    names = write_tasks(settings.tasks, settings.folder / "tasks")
    stock = settings.arms[0]

    def ask(arm: Arm, label: str) -> Answered:
        return _ask(settings, names, arm, label, say)

    try:
        first = ask(stock, stock.name).samples
        again = ask(stock, f"{stock.name}-again").samples
    except (LaunchError, TaskRunError) as error:
        return TasksResult(settings, {}, (), f"arm {stock.name}: {error}")
    different = differing_hashes(first, again)
    if different:
        return TasksResult(settings, {}, (), _asked_unlike(different))
    floor = compare(first, again)
    if floor[ALL_TASKS].flips.first_share == 0.0:
        nothing = (
            f"arm {stock.name} got none of {floor[ALL_TASKS].flips.items} questions right, so that "
            "no loss could show: name tasks that this model can do"
        )
        return TasksResult(settings, floor, (), nothing)
    others = []
    for arm in settings.arms[1:]:
        try:
            answered = ask(arm, arm.name)
        except (LaunchError, TaskRunError) as error:
            say(f"arm {arm.name}: {error}")
            others.append(ArmResult(arm, invalid=str(error)))
            continue
        different = differing_hashes(first, answered.samples)
        if different:
            others.append(ArmResult(arm, invalid=_asked_unlike(different)))
            continue
        compared = compare(first, answered.samples)
        verdict = judge(compared, settings.margin)
        others.append(ArmResult(arm, compared, verdict, treatment=answered.treatment))
    return TasksResult(settings, floor, tuple(others))


@dataclass(frozen=True)
class Answered:
    """One launch of an arm: its samples, and what the plugin said there."""

    samples: Samples
    treatment: Treatment


def _asked_unlike(item: str) -> str:
    return (
        f"{item} was not the same question in both arms (its hash differs): keep the tasks' files "
        "and lm-eval unchanged while the arms run"
    )


def _ask(
    settings: Settings, names: list[str], arm: Arm, label: str, say: Callable[[str], None]
) -> Answered:
    folder = settings.folder / label
    server = ArmServer(
        settings.server,
        settings.model,
        f"{label}-{secrets.token_hex(4)}",
        folder,
        arguments=(*settings.serve_args, *arm.serve_arguments),
        environment=arm.environment,
    )
    say(f"arm {label}: starting a server")
    try:
        server.start()
        begin = time.monotonic()
        say(f"arm {label}: ready after {server.seconds_to_ready:.0f} s, asking")
        samples = run_tasks(
            settings.tasks,
            names,
            settings.evaluation,
            url=server.base_url,
            model=server.served_name,
            task_folder=settings.folder / "tasks",
            folder=folder,
            environment=settings.server.base_environment,
            died=server.died,
        )
        log = server.log_text()
    finally:
        server.stop()
    right = sum(sample.right for answered in samples.values() for sample in answered.values())
    asked = sum(map(len, samples.values()))
    say(f"arm {label}: {right} of {asked} right, {time.monotonic() - begin:.0f} s")
    if warning := wrong_on_purpose(log):
        say(f"arm {label}: {warning}")
    treatment = read_treatment(log)  # a feature may have failed while it answered
    problem = treatment_problem(arm, treatment)
    if problem is not None:
        raise TaskRunError(problem.sentence)
    return Answered(samples, treatment)


# --- what is shown ------------------------------------------------------------------------------

HEAD = (
    "arm", "task", "items", "first right", "right", "lost", "won", "difference [95 %]", "p worse",
    "p two-sided", "verdict",
)  # fmt: skip


def table(result: TasksResult) -> list[tuple[str, ...]]:
    """The rows below `HEAD`: the A/A flips, then each arm."""
    name = f"{result.settings.arms[0].name} again"
    rows = [_row(name, task, one, "floor") for task, one in result.floor.items()]
    for one in result.others:
        if one.verdict is None:
            rows.append((one.arm.name, ALL_TASKS, *["–"] * 8, "invalid"))
            continue
        for task, compared in one.compared.items():
            if task == ALL_TASKS:
                word: str = one.verdict.outcome
            else:
                word = "" if task in one.verdict.informative else "says nothing"
            rows.append(_row(one.arm.name, task, compared, word))
    return rows


def _row(arm: str, task: str, one: Comparison, verdict: str) -> tuple[str, ...]:
    difference = one.difference
    return (
        arm,
        task,
        str(one.flips.items),
        f"{100 * one.flips.first_share:.1f} %",
        f"{100 * one.flips.second_share:.1f} %",
        str(one.flips.only_first),
        str(one.flips.only_second),
        f"{100 * difference.estimate:+.2f} [{100 * difference.low:+.2f}, "
        f"{100 * difference.high:+.2f}]",
        f"{one.p_worse:.2g}",
        f"{one.p_two_sided:.2g}",
        verdict,
    )


def conclusions(result: TasksResult) -> list[str]:
    """One sentence for each arm, or the one that says why there is none."""
    if result.invalid:
        return [f"invalid: {result.invalid}"]
    return [
        f"{one.arm.name}: invalid: {one.invalid}"
        if one.verdict is None
        else f"{one.arm.name}: {one.verdict.outcome}: {one.verdict.sentence}"
        for one in result.others
    ]
