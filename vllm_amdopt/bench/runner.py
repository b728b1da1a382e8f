"""Runs a plan: blocks of launches in alternating order, again where one does not count.

It decides what is measured next and when to stop. A launch is `launch`'s, what the numbers mean is
decided afterwards, from the record.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm_amdopt.bench.gates import taint_unequal_work
from vllm_amdopt.bench.journal import Journal, Progress, rows_in_order
from vllm_amdopt.bench.launch import Launch, Launcher, Place, Row
from vllm_amdopt.bench.plan import Arm, Plan
from vllm_amdopt.bench.progress import Reporter, Timing, clock
from vllm_amdopt.bench.treatment import pattern_problem

MOST_FAILED_BLOCKS = 2
"""One after another: then something is wrong that more blocks do not mend."""

BAD = ("error", "tainted")
"""What spoils a block; what is unsupported is only left out."""


@dataclass
class Outcome:
    """What a run has when it ends. `stopped`: why before its last block, in a sentence.

    `plans`: arm -> what the plugin had on there. `invalid`: whether the reason makes what was
    measured worthless, as opposed to a budget that ran out.
    """

    rows: list[Row] = field(default_factory=list)
    launches: list[dict[str, Any]] = field(default_factory=list)
    discarded: list[dict[str, Any]] = field(default_factory=list)
    plans: dict[str, Any] = field(default_factory=dict)
    blocks_done: int = 0
    stopped: str | None = None
    invalid: bool = False


class Runner:
    """Carries a plan out, from where the journal ends."""

    def __init__(
        self,
        plan: Plan,
        launcher: Launcher,
        journal: Journal,
        progress: Progress,
        reporter: Reporter,
        timing: Timing,
        *,
        retries: int = 1,
        budget_seconds: float | None = None,
        so_far: Callable[[list[Row]], str] = lambda rows: "",
    ) -> None:
        """`so_far`: what the rows show, in a sentence; said after each block."""
        self._plan = plan
        self._launcher = launcher
        self._journal = journal
        self._progress = progress
        self._reporter = reporter
        self._timing = timing
        self._retries = retries
        self._budget = budget_seconds
        self._so_far = so_far
        self._begin = time.monotonic()
        for block, rows in list(progress.blocks.items()):
            if block >= 0 and any(row["status"] in BAD for row in rows):
                del progress.blocks[block]  # a resumed run measures it again
        self._dropped: dict[str, str] = {
            row["arm"]: row["reason"]
            for rows in progress.blocks.values()
            for row in rows
            if row["status"] == "unsupported"
        }

    def run(self) -> Outcome:
        """All blocks that are missing. What is done stays done if this is interrupted."""
        stopped, invalid = None, False
        if self._plan.pre_block and not self._progress.pre_block_done:
            stopped = self._pre_block()
            invalid = stopped is not None
        failed = 0
        for block in range(self._plan.blocks):
            if stopped is not None or block in self._progress.blocks:
                continue
            stopped = self._over_budget(block)
            if stopped is not None:
                break
            rows = self._block(block)
            bad = [row for row in rows if row["status"] in BAD]
            failed = failed + 1 if bad else 0
            if failed >= MOST_FAILED_BLOCKS:
                stopped = f"{failed} blocks in a row failed, the last because: {bad[0]['reason']}"
                invalid = True
            elif len(self._arms()) < 2:
                stopped = "; ".join(self._dropped.values())
                invalid = True
        rows = rows_in_order(self._progress)
        return Outcome(
            rows=rows,
            launches=self._progress.launches,
            discarded=self._progress.discarded,
            plans={
                launch["arm"]: launch["plan"]
                for launch in self._progress.launches
                if launch.get("failure") is None
            },
            blocks_done=len({row["block"] for row in rows if row["block"] >= 0}),
            stopped=stopped,
            invalid=invalid,
        )

    def remaining_seconds(self, blocks_left: int) -> float:
        """By what was measured so far."""
        if self._progress.block_seconds:
            times = sorted(self._progress.block_seconds)
            return blocks_left * times[len(times) // 2]
        launches = blocks_left * len(self._arms())
        return self._timing.estimate(launches, launches * self._plan.runs_per_launch())

    # --- blocks ---------------------------------------------------------------------------------

    def _arms(self) -> list[Arm]:
        """Those that run on this machine with this model."""
        return [arm for arm in self._plan.arms if arm.name not in self._dropped]

    def _pre_block(self) -> str | None:
        """Launch every arm once and throw it away, so that nobody pays for filling the caches.

        Returns why the run cannot go on. An arm that cannot run here leaves its rows.
        """
        self._reporter.event(
            "pre_block", "a first launch of each arm, not counted, fills the caches"
        )
        failed: list[Row] = []
        sentence = None
        for position, arm in enumerate(self._plan.arms):
            launch = self._launch_until_it_works(arm, position)
            if launch.failure is None:
                continue
            failed += launch.rows
            if launch.rows[0]["status"] == "unsupported":
                self._drop(arm, launch.failure)
            else:
                sentence = f"{arm.name} does not run: {launch.failure}"
                break
        if sentence is None and len(self._arms()) < 2:
            sentence = "; ".join(self._dropped.values())
        self._keep(-1, failed, 0.0)
        if sentence is None:
            self._journal.append("pre_block")
            self._progress.pre_block_done = True
        return sentence

    def _launch_until_it_works(self, arm: Arm, position: int) -> Launch:
        for attempt in range(1 + self._retries):
            launch = self._launch(arm, Place(-1, position, attempt))
            if launch.failure is None or launch.rows[0]["status"] == "unsupported":
                break
            self._reporter.event("failed", f"{arm.name}: {launch.failure}", arm=arm.name)
        return launch

    def _block(self, block: int) -> list[Row]:
        """One block, again as a whole while it does not count; what is left is kept."""
        begin = time.monotonic()
        for attempt in range(1 + self._retries):
            rows = self._attempt(block, attempt)
            bad = [row for row in rows if row["status"] in BAD]
            if not bad or attempt == self._retries:
                break
            what = {"block": block, "attempt": attempt, "reason": bad[0]["reason"], "rows": rows}
            self._journal.append("discarded", what=what)
            self._progress.discarded.append(what)
            self._reporter.event(
                "again", f"block {block + 1} does not count and is run again: {bad[0]['reason']}"
            )
        self._keep(block, rows, time.monotonic() - begin)
        left = self._plan.blocks - block - 1
        state = "failed: " + str(bad[0]["reason"]) if bad else "done"
        self._reporter.event(
            "block",
            f"block {block + 1}/{self._plan.blocks} ({self._plan.order_name(block)}) {state}; "
            f"about {clock(self.remaining_seconds(left))} to go",
            block=block,
            order=self._plan.order_name(block),
        )
        shown = self._so_far(rows_in_order(self._progress))
        if shown and left:
            self._reporter.event("so_far", f"so far, not to be acted on: {shown}")
        return rows

    def _attempt(self, block: int, attempt: int) -> list[Row]:
        rows: list[Row] = []
        logs: dict[str, str] = {}
        for position, index in enumerate(self._plan.order(block)):
            arm = self._plan.arms[index]
            if arm.name in self._dropped:
                continue
            launch = self._launch(arm, Place(block, position, attempt))
            rows += launch.rows
            logs[arm.name] = launch.log
            if launch.failure is None:
                continue
            if launch.rows[0]["status"] == "unsupported":
                self._drop(arm, launch.failure)
            else:
                break  # without its partner nothing of this block can be compared
        pattern = self._plan.treatment_pattern
        if pattern is not None and set(logs) == {arm.name for arm in self._plan.arms}:
            in_order = {arm.name: logs[arm.name] for arm in self._plan.arms}
            problem = pattern_problem(pattern, in_order)
            if problem is not None:
                for row in rows:
                    row.update(status=problem.status, reason=problem.sentence)
        taint_unequal_work(rows)
        return rows

    def _launch(self, arm: Arm, place: Place) -> Launch:
        launch = self._launcher.launch(arm, place)
        self._journal.append("launch", launch=launch.facts)
        self._progress.launches.append(launch.facts)
        ready = launch.facts.get("seconds_to_ready")
        if launch.failure is None and ready is not None:
            where = "pre-block" if place.block < 0 else f"block {place.block + 1}"
            self._reporter.event(
                "launch",
                f"{where}: {arm.name} measured, ready after {ready:.0f} s",
                arm=arm.name,
                block=place.block,
            )
        return launch

    def _drop(self, arm: Arm, reason: str) -> None:
        self._dropped[arm.name] = reason
        self._reporter.event("unsupported", f"{arm.name} is left out: {reason}", arm=arm.name)

    def _keep(self, block: int, rows: list[Row], seconds: float) -> None:
        self._journal.append("block", block=block, rows=rows, seconds=seconds)
        self._progress.blocks[block] = rows
        if block >= 0:
            self._progress.block_seconds.append(seconds)

    def _over_budget(self, block: int) -> str | None:
        if self._budget is None:
            return None
        used = time.monotonic() - self._begin
        needed = self.remaining_seconds(1)
        if used + needed <= self._budget:
            return None
        return (
            f"the budget of {clock(self._budget)} ends before block {block + 1}, which takes about "
            f"{clock(needed)}; go on with --resume"
        )
