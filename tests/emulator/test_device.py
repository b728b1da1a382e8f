"""The emulated device inside a longer-lived process: driver swapping, counts, caches, threads."""

import gc
import mmap
import os
import subprocess
import sys
import threading

import pytest
import torch
from triton.runtime import driver

from tests.emulator import kernels
from vllm_amdopt.emulator import run as runner
from vllm_amdopt.emulator.definitions import EmuError, MemFault, Unsupported
from vllm_amdopt.emulator.launch import Device, emulate, launch


def _add(device, n=100, block=128):
    a, b = torch.randn(n), torch.randn(n)
    c = torch.full((n,), float("nan"))
    with device:
        kernels.vector_add[(-(-n // block),)](a, b, c, n, BLOCK=block, num_warps=1)
    assert torch.equal(c, a + b)


def test_buffers_of_a_launch_are_let_go():
    """Machines are kept for the next launch; a buffer kept with them once filled all memory."""
    memory = mmap.mmap(-1, 4 * 128)
    c = torch.frombuffer(memory, dtype=torch.float32)
    with Device("gfx942"):
        kernels.vector_add[(1,)](torch.ones(128), torch.ones(128), c, 128, BLOCK=128, num_warps=1)
    assert torch.equal(c, torch.full((128,), 2.0))
    del c
    gc.collect()
    memory.close()  # BufferError while anything still refers to it


@pytest.mark.parametrize("before", [None, object()], ids=["not-initialised", "another-driver"])
def test_the_driver_that_was_active_comes_back(before, monkeypatch):
    monkeypatch.setattr(driver, "_active", before)
    device = Device("gfx942")
    with device:
        assert driver.active is device
        with Device("gfx950") as inner:
            assert driver.active is inner
        with device:
            assert driver.active is device
        assert driver.active is device
    assert driver._active is before
    with pytest.raises(ZeroDivisionError), device:
        raise ZeroDivisionError
    assert driver._active is before


def test_counts_add_up_by_kernel_and_the_list_of_launches_is_bounded():
    device = Device("gfx942", keep_launches=3)
    for _ in range(5):
        _add(device)
    x = torch.randn(2, 64)
    with device:
        kernels.softmax[(2,)](x, torch.empty_like(x), 64, 64, BLOCK=64)
    assert len(device.launches) == 3
    counts = device.counts["vector_add"]
    assert (counts.launches, counts.workgroups) == (5, 5)
    assert counts.bytes["global_load"] == 5 * 2 * 4 * 100
    assert counts.bytes["global_store"] == 5 * 4 * 100
    assert counts.wave_instructions == sum(counts.instructions.values()) > 0
    report = device.report()
    assert {entry["kernel"] for entry in report} == {"vector_add", "softmax"}
    assert report[0]["seconds"] >= report[1]["seconds"]


@pytest.mark.parametrize(("divisor", "readers"), [(1, 1), (2, 2), (8, 8)])
def test_what_memory_delivers_is_counted_once_for_each_xcd(divisor, readers):
    """Of 16 programs i and i + 8 share an XCD, i and i + 1 do not."""
    rows = 16 // max(divisor, 2)
    source, out = torch.randn(rows, 64), torch.empty(16, 64)
    device = Device("gfx942", stats="full")
    with device:
        kernels.copy_shared_row[(16,)](source, out, DIVISOR=divisor, ROWS=rows, num_warps=1)
    assert torch.equal(out, source[torch.arange(16) // divisor % rows])
    (launch,) = device.launches
    assert launch["loaded"][source.data_ptr()] == 16 * 256
    assert launch["fetched64B"][source.data_ptr()] == readers * rows * 4
    assert launch["fetched64B"][out.data_ptr()] == 0


def test_decoded_machines_are_kept_within_bounds(monkeypatch):
    monkeypatch.setattr(runner, "MAX_MACHINES", 4)
    device = Device("gfx942")
    for workgroups in range(1, 9):
        _add(device, n=128 * workgroups)
    assert len(runner._machines) <= 4
    _add(device, n=128)


def test_a_kernel_from_triton_s_disk_cache_runs_in_a_new_process(tmp_path):
    program = (
        "import torch\n"
        "from tests.emulator import kernels\n"
        "from vllm_amdopt.emulator.launch import Device\n"
        "a, c = torch.randn(64), torch.zeros(64)\n"
        "with Device('gfx950') as device:\n"
        "    kernels.vector_add[(1,)](a, a, c, 64, BLOCK=64, num_warps=1)\n"
        "assert torch.equal(c, a + a)\n"
    )
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], check=True, env=environment)
        written = sorted(p.name for p in tmp_path.rglob("vector_add.amdgcn"))
    assert written == ["vector_add.amdgcn"]


def test_threads_take_turns():
    device, failures = Device("gfx942"), []

    def work():
        try:
            for _ in range(10):
                _add(device)
        except BaseException as error:
            failures.append(error)

    _add(device)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert device.counts["vector_add"].launches == 31


def test_importing_the_package_imports_neither_triton_nor_torch():
    program = (
        "import sys, vllm_amdopt.emulator.launch, vllm_amdopt.emulator.run\n"
        "sys.exit(any(name in sys.modules for name in ('triton', 'torch')))\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_an_access_outside_every_buffer_names_buffer_and_offset():
    x, y = torch.randn(100), torch.zeros(100)
    # Which buffer is nearest is the allocator's doing.
    with pytest.raises(MemFault, match=r"nearest buffer .+ bytes: offset -?\d+") as caught:
        launch(kernels.through_a_stray_offset, (1,), x, y, 3, BLOCK=64)
    assert "kernels.py" in str(caught.value)


def test_an_endless_loop_is_stopped():
    flag, data, out = torch.zeros(1, dtype=torch.int32), torch.ones(1), torch.zeros(1)
    with pytest.raises(EmuError, match="more than 500 basic blocks"):
        launch(kernels.wait_for, (1,), flag, data, out, max_blocks=500, num_warps=1)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(Unsupported, match="use one of gfx942, gfx950"):
        Device("gfx1100")


def test_an_empty_grid_launches_nothing():
    x = torch.zeros(4)
    with emulate("gfx942") as device:
        kernels.vector_add[(0,)](x, x, x, 4, BLOCK=64)
    assert not device.launches
