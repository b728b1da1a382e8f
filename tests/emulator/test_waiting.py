"""Kernels that wait for another process: memory is read afresh, and waiting has an end."""

import mmap
import multiprocessing
import time

import numpy as np
import pytest
import torch

from tests.emulator import kernels
from vllm_amdopt.emulator.atomics import do_atomic
from vllm_amdopt.emulator.definitions import WaitTimeout
from vllm_amdopt.emulator.launch import Device, launch


def _words(memory: mmap.mmap) -> torch.Tensor:
    return torch.frombuffer(memory, dtype=torch.int32)


def _answer(path: str) -> None:
    """wait for the parent, let its kernel poll a while, then write data and flag"""
    with open(path, "r+b") as file:
        words = _words(mmap.mmap(file.fileno(), 4096))
    while not words[2]:
        time.sleep(0.001)
    time.sleep(0.3)
    words[1] = 42
    words[0] = 7


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_a_flag_written_by_another_process_ends_the_waiting(arch, tmp_path):
    path = tmp_path / "memory"
    path.write_bytes(bytes(4096))
    with open(path, "r+b") as file:
        words = _words(mmap.mmap(file.fileno(), 4096))
    out = torch.zeros(1, dtype=torch.int32)
    process = multiprocessing.get_context("spawn").Process(target=_answer, args=(str(path),))
    process.start()
    words[2] = 1
    with Device(arch, wait_timeout=60) as device:
        kernels.wait_for[(1,)](words, words[1:], out, num_warps=1)
    process.join()
    assert out.item() == 42
    assert device.launches[-1]["blocks"] > 8  # it did poll


def test_waiting_in_vain_ends_in_an_error_that_names_the_kernel():
    flag, data, out = torch.zeros(1, dtype=torch.int32), torch.ones(1), torch.zeros(1)
    with pytest.raises(WaitTimeout, match=r"kernel wait_for has polled memory for 0\.2 s"):
        launch(kernels.wait_for, (1,), flag, data, out, wait_timeout=0.2, num_warps=1)


def test_a_polling_workgroup_lets_the_one_it_waits_for_run():
    flags, out = torch.zeros(4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    launch(kernels.pass_on, (4,), flags, out, coresident=True, wait_timeout=30, num_warps=1)
    assert out.tolist() == [4, 3, 2, 1]


@pytest.mark.parametrize("value", [0, 5], ids=["add-0", "add-5"])
def test_an_atomic_that_changes_nothing_writes_nothing(value):
    """polling by atomic_add(flag, 0) must not undo what another process writes meanwhile"""
    memory = np.array([7, 8], np.uint32)
    memory.flags.writeable = value != 0
    data = np.full(2, value, np.uint32)
    old = do_atomic(memory, np.array([1, 1]), np.add, np.add, data, ret=True)
    assert old.tolist() == [8, 8 + value]
    assert memory.tolist() == [7, 8 + 2 * value]
