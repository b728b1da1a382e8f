"""Locks and occupancy: two runs on one machine, and made-up machines of every kind of reader."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.bench.rig import ROOT
from vllm_amdopt.bench.gpu_choice import choose_gpus, wanted_count
from vllm_amdopt.bench.gpu_lock import BusyError, LockDirectoryError, Locks, lock_directory
from vllm_amdopt.bench.gpu_use import (
    GIB,
    GpuUse,
    Machine,
    Watcher,
    foreign_use,
    gpus_in_use,
    run_command,
)
from vllm_amdopt.bench.plan import PlanError

# --- locks --------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from vllm_amdopt.bench.gpu_lock import Locks
locks = Locks(Path(sys.argv[1]))
locks.acquire(sys.argv[2:], purpose="a test")
print("held", flush=True)
sys.stdin.read()
"""


def test_lock_is_held_against_other_processes_until_they_die(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), "GPU-1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    ours = Locks(tmp_path)
    with pytest.raises(BusyError, match=rf"GPU GPU-1 is in use by .*process {holder.pid}.*a test"):
        ours.acquire(["GPU-0", "GPU-1"])
    assert ours.held == (), "a lock that was had is given back with the others"
    heard: list[str] = []

    def on_wait(who: str) -> None:
        heard.append(who)
        holder.kill()
        holder.wait()

    ours.acquire(["GPU-1", "GPU-0"], wait_seconds=30.0, on_wait=on_wait)
    assert ours.held == ("GPU-0", "GPU-1") and len(heard) == 1
    ours.release()
    Locks(tmp_path).acquire(["GPU-0"])


def test_two_owners_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    first, second = Locks(tmp_path), Locks(tmp_path)
    assert first.lock("a/b") is None and first.lock("a/b") is None
    assert "is in use by" in (second.lock("a/b") or "")
    assert [path.name for path in tmp_path.iterdir()] == ["a_b.lock"]


def test_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LockDirectoryError, match="remove it, or set VLLM_AMDOPT_LOCK_DIR"):
        Locks(tmp_path).acquire(["x"])
    assert not (tmp_path / "elsewhere").exists()


def test_owner_without_a_name(tmp_path: Path) -> None:
    first = Locks(tmp_path)
    first.acquire(["x"])
    (tmp_path / "x.lock").write_text("{")
    with pytest.raises(BusyError, match="somebody who left no name"):
        Locks(tmp_path).acquire(["x"])


def test_directory_for_locks(tmp_path: Path) -> None:
    named = lock_directory({"VLLM_AMDOPT_LOCK_DIR": str(tmp_path / "locks")})
    assert named == tmp_path / "locks" and named.stat().st_mode & 0o7777 == 0o1777
    (own := tmp_path / "own").mkdir(mode=0o700)
    assert lock_directory({"VLLM_AMDOPT_LOCK_DIR": str(own)}) == own
    assert own.stat().st_mode & 0o7777 == 0o700, "a directory of the user's stays as it is"
    (tmp_path / "file").write_text("")
    with pytest.raises(LockDirectoryError, match="set VLLM_AMDOPT_LOCK_DIR to a directory"):
        lock_directory({"VLLM_AMDOPT_LOCK_DIR": str(tmp_path / "file")})


# --- readers ------------------------------------------------------------------------------------


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def answers(table: Mapping[str, str]) -> object:
    """A runner: the first command line that begins like a key gets its answer."""

    def run(command: Sequence[str]) -> str | None:
        line = " ".join(command)
        return next((text for key, text in table.items() if line.startswith(key)), None)

    return run


KFD = "sys/class/kfd/kfd"
TWO_GPUS = {
    f"{KFD}/topology/nodes/0/gpu_id": "0\n",  # the processor
    f"{KFD}/topology/nodes/1/gpu_id": "41234\n",
    f"{KFD}/topology/nodes/1/properties": "unique_id 1234605616436508552\nlocation_id 1280\n",
    f"{KFD}/topology/nodes/2/gpu_id": "50000\n",
    f"{KFD}/topology/nodes/2/properties": "unique_id 0\nlocation_id 9728\ndomain 1\nan odd line\n",
    f"{KFD}/topology/nodes/3/gpu_id": "",  # not given to this container
    f"{KFD}/proc/77/vram_41234": f"{3 * GIB}\n",
    f"{KFD}/proc/77/vram_50000": "0\n",
    f"{KFD}/proc/78/vram_41234": "0\n",  # has closed its GPU
    f"{KFD}/proc/notes/vram_41234": "5\n",
    "sys/bus/pci/devices/0000:05:00.0/mem_info_vram_used": f"{4 * GIB}\n",
    "sys/bus/pci/devices/0001:26:00.0/mem_info_vram_used": "300\n",
}


def test_kfd_files_are_read(tmp_path: Path) -> None:
    machine = Machine(write(tmp_path, TWO_GPUS), lambda command: None)
    assert gpus_in_use(machine) == (
        GpuUse(0, "1122334455667788", 4 * GIB, {77: 3 * GIB}),
        GpuUse(1, "0001:26:00", 300, {}),
    )


def test_partitions_of_one_gpu_are_told_apart(tmp_path: Path) -> None:
    files = {}
    for node, location in ((1, 1280), (2, 1281)):
        files[f"{KFD}/topology/nodes/{node}/gpu_id"] = str(100 + node)
        files[f"{KFD}/topology/nodes/{node}/properties"] = f"unique_id 17\nlocation_id {location}\n"
    found = gpus_in_use(Machine(write(tmp_path, files), lambda command: None))
    assert [gpu.identity for gpu in found] == ["0" * 14 + "11", "0" * 14 + "11.1"]


AMD_SMI = [
    pytest.param(
        [
            {
                "gpu": 0,
                "process_list": [
                    {
                        "process_info": {
                            "pid": 9,
                            "memory_usage": {"vram_mem": {"value": 5, "unit": "GB"}},
                        }
                    }
                ],
            }
        ],
        {9: 5 * GIB},
        id="nested",
    ),
    pytest.param(
        {
            "gpu_data": [
                {
                    "gpu": 0,
                    "process_list": [
                        {
                            "process_info": {
                                "pid": 9,
                                "mem_usage": {"value": 5368709120, "unit": "B"},
                            }
                        }
                    ],
                }
            ]
        },
        {9: 5 * GIB},
        id="gpu-data",
    ),
    pytest.param(
        [{"gpu": 0, "process_list": [{"process_info": "No running processes detected"}]}],
        {},
        id="none",
    ),
    pytest.param([{"gpu": 0, "process_list": [{"pid": 9, "vram_mem": "N/A"}]}], {9: 0}, id="odd"),
]


@pytest.mark.parametrize(("answer", "processes"), AMD_SMI)
def test_amd_smi_is_read(tmp_path: Path, answer: object, processes: dict[int, int]) -> None:
    run = answers({"amd-smi process --json": json.dumps(answer)})
    (gpu,) = gpus_in_use(Machine(tmp_path, run))  # type: ignore[arg-type]
    assert gpu.processes == processes


def test_nvidia_smi_is_read(tmp_path: Path) -> None:
    table = {
        "amd-smi": "not json",
        "nvidia-smi --query-gpu": "0, GPU-aa, 2048\n1, GPU-bb, [N/A]\nodd\n",
        "nvidia-smi --query-compute-apps": "GPU-aa, 5, 1024\nGPU-bb, 6, [N/A]\n",
    }
    machine = Machine(tmp_path, answers(table))  # type: ignore[arg-type]
    assert gpus_in_use(machine) == (
        GpuUse(0, "GPU-aa", 2 * GIB, {5: GIB}),
        GpuUse(1, "GPU-bb", None, {6: 0}),
    )


def test_machine_without_a_gpu(tmp_path: Path) -> None:
    assert gpus_in_use(Machine(tmp_path, lambda command: None)) == ()
    assert run_command(["/nowhere/tool"]) is None
    assert run_command([sys.executable, "-c", "raise SystemExit(3)"]) is None
    assert run_command([sys.executable, "-c", "print(7)"]) == "7\n"


def test_who_is_foreign() -> None:
    ours = GpuUse(0, "a", 5 * GIB, {1: 5 * GIB})
    assert foreign_use([ours], ours=[1]) == []
    assert "process 1 holds 5.0 GiB on GPU 0" in foreign_use([ours])[0]
    hidden = GpuUse(0, "a", 5 * GIB)
    assert "by a process that cannot be seen" in foreign_use([hidden])[0]
    assert foreign_use([hidden], expect_memory=True) == []
    assert foreign_use([GpuUse(0, "a", GIB // 2)]) == []


def test_watcher_sees_who_comes_and_goes(tmp_path: Path) -> None:
    root = write(tmp_path, TWO_GPUS)
    watcher = Watcher(Machine(root, lambda command: None), [0], seconds_between=0.01)
    watcher.start()  # process 77 is there already: ours
    try:
        assert watcher.take() == []
        write(tmp_path, {f"{KFD}/proc/99/vram_41234": f"{GIB}\n"})
        found = watcher.take()
        assert found and "process 99 was seen on GPU 0" in found[0]
        (root / KFD / "proc/99/vram_41234").write_text("0\n")
        watcher.take()
        assert watcher.take() == [], "who has gone is not reported again"
        write(tmp_path, {f"{KFD}/proc/99/vram_50000": f"{GIB}\n"})
        assert watcher.take() == [], "GPU 1 is not part of this run"
    finally:
        watcher.stop()


# --- choosing -----------------------------------------------------------------------------------


def test_gpus_that_a_server_needs() -> None:
    assert wanted_count(()) == 1
    assert wanted_count(("--tensor-parallel-size", "4", "-pp=2", "--data_parallel_size=2")) == 16
    assert wanted_count(("-tp", "many")) == 1


def choose(text: str, count: int, root: Path, locks: Path, **environment: str) -> object:
    machine = Machine(root, lambda command: None)
    return choose_gpus(text, count, machine, Locks(locks), environment)


def test_free_gpu_is_chosen_and_locked(tmp_path: Path) -> None:
    root, locks = write(tmp_path / "root", TWO_GPUS), tmp_path / "locks"
    locks.mkdir()
    machine = Machine(root, lambda command: None)
    held = Locks(locks)
    choice = choose_gpus("auto", 1, machine, held, {})
    assert choice.indices == (1,) and choice.environment == {"HIP_VISIBLE_DEVICES": "1"}
    assert held.held == ("0001:26:00",)
    with pytest.raises(BusyError, match=r"--wait-gpus 2h"):
        choose("auto", 1, root, locks)
    with pytest.raises(BusyError, match=r"GPU 0001:26:00 is in use by"):
        choose("1", 1, root, locks)
    with pytest.raises(BusyError, match=r"process 77 holds 3.0 GiB"):
        choose("0", 1, root, locks)


def test_two_runs_without_a_gpu_take_turns(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "empty", lambda command: None)
    first = Locks(tmp_path)
    assert choose_gpus("auto", 1, machine, first, {}).indices == ()
    with pytest.raises(BusyError, match="this machine is in use by"):
        choose_gpus("none", 1, machine, Locks(tmp_path), {})


def test_users_own_choice_of_devices_is_kept(tmp_path: Path) -> None:
    root = write(
        tmp_path / "root",
        {
            **TWO_GPUS,
            f"{KFD}/proc/77/vram_41234": "0\n",
            "sys/bus/pci/devices/0000:05:00.0/mem_info_vram_used": "0\n",
        },
    )
    choice = choose("auto", 1, root, tmp_path, HIP_VISIBLE_DEVICES="1,0")
    assert choice.indices == (1,)  # type: ignore[attr-defined]
    assert choice.environment == {}  # type: ignore[attr-defined]
    named = choose("0", 1, root, tmp_path, HIP_VISIBLE_DEVICES="1")
    assert named.environment == {"HIP_VISIBLE_DEVICES": "0"}  # type: ignore[attr-defined]
    with pytest.raises(PlanError, match="ROCR_VISIBLE_DEVICES hides some of them"):
        choose("0", 1, root, tmp_path, ROCR_VISIBLE_DEVICES="1")


@pytest.mark.parametrize(
    ("text", "count", "sentence"),
    [
        pytest.param("7", 1, "names GPU 7, and this machine has 0, 1", id="not-there"),
        pytest.param("first", 1, "write auto, auto:4, 0,1 or none", id="word"),
        pytest.param("auto", 4, "4 GPUs are needed and this machine has 2", id="too-few"),
    ],
)
def test_choice_that_cannot_be(tmp_path: Path, text: str, count: int, sentence: str) -> None:
    root = write(tmp_path / "root", TWO_GPUS)
    with pytest.raises(PlanError, match=sentence):
        choose(text, count, root, tmp_path)
