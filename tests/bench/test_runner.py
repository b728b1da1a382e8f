"""The whole harness around mock servers: the order of things, and everything that goes wrong."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.rig import IN_USE, PLUGIN, SMALL, STOCK, Rig, statuses, with_arguments
from vllm_amdopt.bench.gpu_use import Machine
from vllm_amdopt.bench.journal import NAME
from vllm_amdopt.bench.launch import DiskFullError, GpusBusyError
from vllm_amdopt.bench.plan import Arm
from vllm_amdopt.bench.processes import session_members


def test_arms_alternate_and_every_row_counts(tmp_path: Path) -> None:
    rig = Rig(tmp_path, levels=(SMALL, replace(SMALL, concurrency=1)), blocks=2)
    outcome = rig.run()
    assert {status for _, status in statuses(outcome)} == {"ok"}
    assert outcome.blocks_done == 2 and outcome.stopped is None
    launched = [(launch["block"], launch["arm"]) for launch in outcome.launches]
    assert launched == [(0, "stock"), (0, "plugin"), (1, "plugin"), (1, "stock")]
    assert {row["order"] for row in outcome.rows if row["block"] == 1} == {"BA"}
    assert outcome.plans["stock"] is None
    assert outcome.plans["plugin"]["features"] == ["attention"]
    first = outcome.rows[0]
    assert first["metrics"]["completed"] == 4 and first["metrics"]["total_output_tokens"] == 16
    assert first["metrics"]["prefix_cache_hit_share"] == 0.0
    # A launch warms up at every load before it measures any, with other prompts.
    runs = rig.drive.runs
    counts = [run[run.index("--num-prompts") + 1] for run in runs[:4]]
    assert counts == ["2", "2", "4", "4"]
    seeds = [run[run.index("--seed") + 1] for run in runs]
    assert seeds[0] != seeds[2]
    assert sorted(seeds[:4]) == sorted(seeds[4:8]) != sorted(seeds[8:12])


def test_first_launches_are_thrown_away(tmp_path: Path) -> None:
    outcome = Rig(tmp_path, blocks=1, changes={"pre_block": True}).run()
    assert [launch["block"] for launch in outcome.launches] == [-1, -1, 0, 0]
    assert {row["block"] for row in outcome.rows} == {0}


FAULTS = [
    pytest.param(("--mock-fail-every", "6"), "1 of 4 requests failed", "error", id="http-errors"),
    pytest.param(("--mock-die-after", "4"), "the mock server was told to die", "error", id="dies"),
    pytest.param(("--mock-die-after", "1"), "while warming up", "error", id="dies-warming-up"),
    pytest.param(("--mock-hang-after", "4"), "--run-timeout", "error", id="hangs"),
    pytest.param(("--mock-exit", "3"), "exit code 3 at its start", "error", id="no-start"),
    pytest.param(("--mock-ready-seconds", "99"), "--ready-timeout", "error", id="never-ready"),
    pytest.param(("--mock-compile-after", "4"), "the server compiled while", "tainted", id="jit"),
    pytest.param(("--mock-hit-share", "0.5"), "50.0% of the prompt tokens", "tainted", id="cache"),
    pytest.param(("--mock-short-by", "1"), "unequal numbers", "tainted", id="short-answers"),
]


@pytest.mark.parametrize(("arguments", "sentence", "status"), FAULTS)
def test_fault_becomes_a_row_with_its_reason(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str, status: str
) -> None:
    impatient = {"run_seconds": 1.0 if "--mock-hang-after" in arguments else 60.0}
    if "--mock-ready-seconds" in arguments:
        impatient["ready_seconds"] = 2.0
    rig = Rig(tmp_path, (STOCK, with_arguments(PLUGIN, *arguments)), blocks=1, **impatient)
    outcome = rig.run()
    row = next(row for row in outcome.rows if row["arm"] == "plugin")
    assert row["status"] == status
    assert sentence in row["reason"]
    if status == "error":
        assert set(row["metrics"]) <= {"completed", "failed"}


def test_dropped_requests_are_a_finding_where_the_load_allows_them(tmp_path: Path) -> None:
    overload = replace(SMALL, concurrency=None, request_rate=50.0, drops_allowed=True)
    dropping = with_arguments(PLUGIN, "--mock-fail-every", "3")
    outcome = Rig(tmp_path, (STOCK, dropping), (overload,), blocks=1).run()
    assert {status for _, status in statuses(outcome)} == {"ok"}
    stock, plugin = (row["metrics"] for row in outcome.rows)
    assert stock["failed"] == 0 and stock["mean_e2el_ms"] > 0
    assert plugin["failed"] == 2 and plugin["completed"] == 2
    assert plugin["output_throughput"] > 0 and "mean_e2el_ms" not in plugin


def test_treatment_that_did_not_happen_taints(tmp_path: Path) -> None:
    outcome = Rig(tmp_path, (STOCK, Arm("plugin", {"VLLM_AMDOPT": "1"})), blocks=1).run()
    assert statuses(outcome) == [("stock", "ok"), ("plugin", "tainted")]
    assert "the plugin is not active in plugin" in outcome.rows[1]["reason"]


def test_plugin_in_the_stock_arm_taints(tmp_path: Path) -> None:
    outcome = Rig(tmp_path, (with_arguments(STOCK, "--mock-say", IN_USE), PLUGIN), blocks=1).run()
    assert outcome.rows[0]["status"] == "tainted"
    assert "VLLM_AMDOPT=0 forbids it" in outcome.rows[0]["reason"]


def test_pattern_stands_in_for_the_treatment_of_other_arms(tmp_path: Path) -> None:
    arms = (STOCK, Arm("slow", {"VLLM_AMDOPT": "0"}, ("--mock-say", "slowed by 10 %")))
    good = Rig(tmp_path / "1", arms, blocks=1, changes={"treatment_pattern": "slowed by"}).run()
    assert {status for _, status in statuses(good)} == {"ok"}
    bad = Rig(tmp_path / "2", arms, blocks=1, changes={"treatment_pattern": "doubled"}).run()
    assert {status for _, status in statuses(bad)} == {"tainted"}
    assert "nothing in the log of slow matches" in bad.rows[0]["reason"]


def test_feature_that_is_not_for_this_model_is_left_out(tmp_path: Path) -> None:
    only_mla = replace(with_arguments(PLUGIN), name="only-mla", expected_features=("mla",))
    outcome = Rig(tmp_path, (STOCK, PLUGIN, only_mla), blocks=2).run()
    left_out = [row for row in outcome.rows if row["arm"] == "only-mla"]
    assert [row["status"] for row in left_out] == ["unsupported"]
    assert "the model has no latent attention" in left_out[0]["reason"]
    assert [row["arm"] for row in outcome.rows if row["block"] == 1] == ["plugin", "stock"]


def test_spoiled_block_is_measured_again_as_a_whole(tmp_path: Path) -> None:
    """The first launch of the plugin dies, the second does not: the file says which it is."""
    script = tmp_path / "flaky.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom vllm_amdopt.bench.mock_server import main\n"
        f"mark = Path({str(tmp_path / 'died-once')!r})\n"
        "arguments = sys.argv[1:]\n"
        "if '--flaky' in arguments and not mark.exists():\n"
        "    mark.touch()\n    arguments += ['--mock-die-after', '3']\n"
        "sys.exit(main(arguments))\n"
    )
    rig = Rig(
        tmp_path / "out",
        (STOCK, with_arguments(PLUGIN, "--flaky")),
        blocks=1,
        retries=1,
        program=(sys.executable, str(script)),
    )
    outcome = rig.run()
    assert statuses(outcome) == [("stock", "ok"), ("plugin", "ok")]
    assert [what["attempt"] for what in outcome.discarded] == [0]
    assert "told to die" in outcome.discarded[0]["reason"]
    assert "does not count and is run again" in rig.stream.getvalue()


def test_run_stops_where_more_blocks_would_not_help(tmp_path: Path) -> None:
    rig = Rig(tmp_path, (STOCK, with_arguments(PLUGIN, "--mock-exit", "1")), blocks=5)
    outcome = rig.run()
    assert outcome.invalid and outcome.blocks_done == 2
    assert outcome.stopped is not None and "2 blocks in a row failed" in outcome.stopped


def test_failed_blocks_are_measured_again_by_a_resumed_run(tmp_path: Path) -> None:
    broken = Rig(tmp_path, (STOCK, with_arguments(PLUGIN, "--mock-exit", "1")), blocks=3)
    assert broken.run().invalid
    mended = Rig(tmp_path, blocks=3).run()
    assert mended.blocks_done == 3 and {status for _, status in statuses(mended)} == {"ok"}


def test_clock_that_jumps_changes_no_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = iter(range(10**9, 0, -86_400))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    outcome = Rig(tmp_path, blocks=1).run()
    assert {status for _, status in statuses(outcome)} == {"ok"}
    assert all(0 < launch["seconds_to_ready"] < 60 for launch in outcome.launches)
    assert all(0 < row["metrics"]["duration"] < 60 for row in outcome.rows)


def test_arm_that_cannot_load_has_its_row_before_any_block(tmp_path: Path) -> None:
    refusing = with_arguments(
        PLUGIN, "--mock-say", "ValueError: the checkpoint has no weights", "--mock-exit", "1"
    )
    outcome = Rig(tmp_path, (STOCK, refusing), blocks=3, changes={"pre_block": True}).run()
    assert outcome.invalid and statuses(outcome) == [("plugin", "error")]
    assert "the checkpoint has no weights" in outcome.rows[0]["reason"]


def test_taken_port_is_left_to_its_owner(tmp_path: Path) -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = owner.getsockname()[1]
        outcome = Rig(tmp_path, blocks=1, port=port).run()
    assert {status for _, status in statuses(outcome)} == {"ok"}
    command = json.loads((tmp_path / "block-01" / "A-stock" / "command.json").read_text())
    assert str(port) not in command["command"]


def test_interrupt_ends_the_servers_and_the_run_goes_on_later(tmp_path: Path) -> None:
    class Interrupting:
        """Interrupts in the second block, while a server is up."""

        def __init__(self, rig: Rig) -> None:
            self.inner, self.left = rig.drive, 6
            self.children: list[int] = []

        def __call__(self, *arguments: object) -> object:
            self.left -= 1
            if self.left == 0:
                self.children = [
                    child
                    for child in map(int, filter(str.isdigit, os.listdir("/proc")))
                    if session_members(child) and _parent(child) == os.getpid()
                ]
                raise KeyboardInterrupt
            return self.inner(*arguments)  # type: ignore[operator]

    rig = Rig(tmp_path, blocks=3)
    interrupting = Interrupting(rig)
    rig.drive = interrupting  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        rig.run()
    assert interrupting.children
    assert all(not session_members(child) for child in interrupting.children)

    # Killed in the middle of writing its last line.
    journal = tmp_path / NAME
    with journal.open("a") as file:
        file.write('{"event": "block", "blo')
    again = Rig(tmp_path, blocks=3)
    outcome = again.run()
    assert outcome.blocks_done == 3 and {status for _, status in statuses(outcome)} == {"ok"}
    launched = [launch["block"] for launch in outcome.launches]
    assert launched.count(0) == 2, "the finished block is not measured again"
    assert len(again.drive.runs) == 8  # type: ignore[attr-defined]


def _parent(process: int) -> int:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def test_budget_ends_the_run_between_blocks(tmp_path: Path) -> None:
    outcome = Rig(tmp_path, blocks=4, budget=0.0).run()
    assert outcome.rows == [] and not outcome.invalid
    assert outcome.stopped is not None and "--resume" in outcome.stopped


def test_full_disk_stops_before_a_server_starts(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="make room, then go on with --resume"):
        Rig(tmp_path, free_disk_bytes=1 << 60).run()
    assert not (tmp_path / "block-01").exists()


def test_foreign_process_on_the_gpu_is_waited_for_and_watched(tmp_path: Path) -> None:
    uses: list[str] = []
    lock = threading.Lock()

    def nvidia_smi(command: list[str]) -> str | None:
        """Quiet while a server starts; a stranger comes while the load runs."""
        if command[0] != "nvidia-smi":
            return None
        if "--query-gpu" in command[1]:
            return "0, GPU-0123, 10\n"
        with lock:
            return "".join(f"GPU-0123, {process}, 2048\n" for process in uses)

    class Stranger(type(Rig(tmp_path).drive)):  # type: ignore[misc]
        def __call__(self, *arguments: object) -> object:
            with lock:
                uses[:] = ["4711"] if len(self.runs) % 2 == 1 else []
            return super().__call__(*arguments)

    machine = Machine(Path("/nowhere"), nvidia_smi)  # type: ignore[arg-type]
    rig = Rig(tmp_path, blocks=1, retries=1, machine=machine, gpu_indices=(0,), drive=Stranger())
    with pytest.raises(GpusBusyError, match=r"process 4711 holds 2.0 GiB on GPU 0"):
        rig.run()  # the launch that repeats the spoiled one finds the stranger still there
    rows = [json.loads(line) for line in (tmp_path / NAME).read_text().splitlines()]
    assert "process 4711 was seen on GPU 0" in rows[0]["launch"]["failure"]
