"""Reading the machine from made-up trees of the kernel's files and a made-up amdsmi."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.machines import HBM, MI300X_NODE, Machine, mi300x_node
from vllm_amdopt.detection import (
    Gpu,
    detect,
    driver_version,
    gfx_name,
    host_memory_bytes,
    pci_gpus,
    processes_on_gpu,
    rocm_version,
)
from vllm_amdopt.hardware import GIB, Hardware, virtual


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# --- the kernel's files --------------------------------------------------------------------------


def test_eight_mi300x(machine: Machine) -> None:
    machine.eight_mi300x()
    found = machine.detect(engine="gfx950")
    assert found == Hardware(
        "amd", "gfx942", 8, 192 * GIB, 2113409024 * 1024, product="MI300X", partition="SPX"
    )
    assert not found.virtual
    assert found.description == "AMD Instinct MI300X (gfx942)"
    assert machine.gpus()[0] == Gpu(
        gfx="gfx942",
        memory_bytes=192 * GIB,
        product="MI300X",
        compute_partition="SPX",
        memory_partition="NPS1",
        address="0000:20:00.0",
        mec_firmware=177,
    )


def test_partitions_of_one_gpu_count_as_devices(machine: Machine) -> None:
    for number in range(8):
        machine.node(number, mi300x_node(bus=5, partition=number), (HBM,))
    machine.pci("0000:05:00.0", current_compute_partition="CPX", current_memory_partition="NPS4")
    found = machine.detect()
    assert (found.device_count, found.partition) == (8, "CPX")
    assert {gpu.memory_partition for gpu in machine.gpus()} == {"NPS4"}


def test_partition_number_in_the_upper_bits_too(machine: Machine) -> None:
    """Some kernels put the partition's number into bits 28 to 31 of the location."""
    machine.node(0, f"{MI300X_NODE}location_id {3 << 28 | 5 << 8}\n", (HBM,))
    assert machine.gpus()[0].address == "0000:05:00.0"


def test_product_from_the_pci_bus_where_the_node_does_not_say(machine: Machine) -> None:
    machine.node(0, f"{MI300X_NODE}location_id {5 << 8}\n", (HBM,))
    machine.pci("0000:05:00.0", device="0x74a5\n")
    assert machine.detect().product == "MI325X"


def test_node_of_an_old_kernel_is_known_by_its_gfx_only(machine: Machine) -> None:
    machine.node(0, MI300X_NODE, (HBM,))
    found = machine.detect()
    assert (found.gfx, found.product, found.partition) == ("gfx942", None, None)
    assert found.description == "AMD gfx942 (MI300X, MI325X, MI300A, MI308X)"


@pytest.mark.parametrize("text", ["", "UNKNOWN", "\x00\xff", "SPX DPX", "CPX" * 9999])
def test_odd_partition_mode_is_not_known(machine: Machine, text: str) -> None:
    machine.node(0, mi300x_node(bus=5), (HBM,))
    machine.pci("0000:05:00.0", current_compute_partition=text)
    assert machine.detect().partition is None


def test_integrated_gpu_beside_a_card_is_not_meant(machine: Machine) -> None:
    machine.node(
        0, "simd_count 4\ngfx_target_version 100306\n", ("heap_type 1\nsize_in_bytes 9\n",)
    )
    machine.node(1, MI300X_NODE, (HBM,))
    found = machine.detect()
    assert (found.gfx, found.device_count) == ("gfx942", 1)


def test_two_kinds_of_memory_banks(machine: Machine) -> None:
    """Public and private frame buffer count; local data share and scratch do not."""
    banks = ((1, 5), (2, 7), (4, 1000))
    machine.node(
        1,
        MI300X_NODE,
        tuple(f"heap_type {kind}\nsize_in_bytes {size}\n" for kind, size in banks),
    )
    assert machine.detect().device_memory_bytes == 12


def test_memory_that_cannot_be_read_is_unknown(machine: Machine) -> None:
    machine.node(1, MI300X_NODE)
    found = machine.detect()
    assert (found.gfx, found.device_memory_bytes, found.host_memory_bytes) == ("gfx942", None, None)


@pytest.mark.parametrize(
    "properties",
    [
        pytest.param("", id="empty, as for another container's GPU"),
        pytest.param("\x00\xff garbage", id="garbage"),
        pytest.param("gfx_target_version\nsimd_count", id="names without numbers"),
        pytest.param("gfx_target_version x\nsimd_count y\n", id="words for numbers"),
        pytest.param("gfx_target_version 90402\nsimd_count 0\n", id="no SIMDs"),
        pytest.param("simd_count 1216\ngfx_target_version 0\n", id="no architecture"),
        pytest.param("simd_count 1216\ngfx_target_version -1\n", id="negative architecture"),
        pytest.param("simd_count 1216\ngfx_target_version 99999\n", id="impossible architecture"),
        pytest.param("simd_count 1216\ngfx_target_version ²\n", id="a digit that is no number"),
        pytest.param(f"simd_count 1\ngfx_target_version {'9' * 5000}\n", id="a number too long"),
    ],
)
def test_broken_node_is_no_gpu(machine: Machine, properties: str) -> None:
    machine.node(0, properties)
    assert machine.detect().kind == "cpu"


def test_broken_trees_are_no_gpu(machine: Machine) -> None:
    nodes = machine.places.kfd_nodes
    assert machine.detect().kind == "cpu", "nothing there"
    machine.write(nodes, "a file where a directory should be")
    assert machine.detect().kind == "cpu"
    nodes.unlink()
    (nodes / "0" / "properties").mkdir(parents=True)
    assert machine.detect().kind == "cpu", "a directory where a file should be"
    (nodes / "loop").symlink_to(nodes / "loop")
    assert machine.detect().kind == "cpu", "a link to itself"


def test_odd_contents_are_ignored_and_never_raise(machine: Machine) -> None:
    """Every file that is read, filled with noise from a fixed seed, over and over."""
    noise = random.Random(20260922)
    places = machine.places
    files = [
        places.kfd_nodes / "0" / "properties",
        places.kfd_nodes / "0" / "mem_banks" / "0" / "properties",
        places.pci_devices / "0000:05:00.0" / "vendor",
        places.pci_devices / "0000:05:00.0" / "device",
        places.pci_devices / "0000:05:00.0" / "current_compute_partition",
        places.amdgpu_version,
        places.memory_info,
        places.memory_limits[0],
        places.rocm / ".info" / "version",
    ]
    words = [b"simd_count 8\n", b"gfx_target_version 90402\n", b"location_id ", b"0x1002", b"heap_"]
    words += [
        b"size_in_bytes 1\n",
        b"MemTotal: ",
        b" kB",
        b"-",
        b"9" * 30,
        b"\xff\x00",
        "²".encode(),
    ]
    for _ in range(40):
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"".join(noise.choices(words, k=noise.randrange(12))))
        assert machine.detect().kind in ("amd", "cpu")
        for version in (rocm_version(places), driver_version(places)):
            assert version is None or len(version) <= 60
        assert isinstance(pci_gpus(places), tuple)


def test_nvidia(machine: Machine) -> None:
    (machine.places.nvidia_gpus / "0000:65:00.0").mkdir(parents=True)
    found = machine.detect(engine="gfx942")
    assert (found.kind, found.gfx, found.device_count, found.engine) == ("nvidia", None, 1, None)
    assert "stand-in" in found.description


def test_nvidia_driver_without_a_gpu(machine: Machine) -> None:
    machine.places.nvidia_gpus.mkdir(parents=True)
    assert machine.detect().kind == "cpu"


def test_amd_counts_before_nvidia(machine: Machine) -> None:
    (machine.places.nvidia_gpus / "0").mkdir(parents=True)
    machine.node(0, MI300X_NODE)
    assert machine.detect().kind == "amd"


def test_cpu_with_and_without_an_engine(machine: Machine) -> None:
    machine.write(machine.places.memory_info, "MemTotal: 1024 kB\n")
    assert machine.detect() == Hardware("cpu", host_memory_bytes=1024**2)
    assert machine.detect(engine="gfx950") == virtual("gfx950", 1024**2)
    with pytest.raises(ValueError, match="unknown CPU engine 'gfx900'"):
        machine.detect(engine="gfx900")


def test_gpus_on_the_bus_without_a_driver(machine: Machine) -> None:
    machine.pci("0000:05:00.0", vendor="0x1002\n", device="0x74a1\n")
    machine.pci("0000:06:00.0", vendor="0x10de\n", device="0x74a1\n")
    machine.pci("0000:07:00.0", vendor="0x1002\n", device="0x1234\n")
    assert pci_gpus(machine.places) == ("MI300X",)
    assert machine.detect().kind == "cpu"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("6.4.2-120\n", "6.4.2-120"),
        ("7.0.0", "7.0.0"),
        ("", None),
        ("unknown", None),
        ("6", None),
        ("6.4 or so", None),
    ],
)
def test_rocm_version(machine: Machine, text: str, version: str | None) -> None:
    machine.write(machine.places.rocm / ".info" / "version", text)
    assert rocm_version(machine.places) == version


def test_driver_version(machine: Machine) -> None:
    assert driver_version(machine.places) is None, "the kernel's own driver names none"
    machine.write(machine.places.amdgpu_version, "6.12.12\n")
    assert driver_version(machine.places) == "6.12.12"


def test_processes_on_the_gpu(machine: Machine) -> None:
    assert processes_on_gpu(machine.places) == ()
    for name in ("4242", str(os.getpid()), "x", "²"):
        (machine.places.kfd_processes / name).mkdir(parents=True)
    assert processes_on_gpu(machine.places) == (4242,)


# --- amdsmi --------------------------------------------------------------------------------------


def fake_amdsmi(devices: list[tuple[str, int]], *, fails_in: str = "", **asic_more: str) -> Any:
    module: Any = ModuleType("amdsmi")
    module.started = module.stopped = 0

    def fail(name: str) -> None:
        if name == fails_in:
            raise RuntimeError(f"AMDSMI_STATUS_NOT_INIT in {name}")

    def init() -> None:
        fail("init")
        module.started += 1

    def stop() -> None:
        module.stopped += 1

    def handles() -> list[int]:
        fail("handles")
        return list(range(len(devices)))

    def asic(handle: int) -> dict[str, str]:
        fail("asic")
        return {"target_graphics_version": devices[handle][0], **asic_more}

    def memory(handle: int, _: object) -> int:
        fail("memory")
        return devices[handle][1]

    module.amdsmi_init, module.amdsmi_shut_down = init, stop
    module.amdsmi_get_processor_handles = handles
    module.amdsmi_get_gpu_asic_info = asic
    module.amdsmi_get_gpu_memory_total = memory
    module.AmdSmiMemoryType = type("AmdSmiMemoryType", (), {"VRAM": 0})
    return module


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda module: monkeypatch.setitem(sys.modules, "amdsmi", module)


def test_amdsmi_is_asked_first(machine: Machine, install: Any) -> None:
    module = fake_amdsmi([("gfx950", 288 * GIB)] * 8)
    install(module)
    machine.node(0, MI300X_NODE)
    found = machine.detect(use_amdsmi=True)
    assert (found.gfx, found.device_count, found.device_memory_bytes) == ("gfx950", 8, 288 * GIB)
    assert (module.started, module.stopped) == (1, 1)


def test_amdsmi_knows_product_partition_and_firmware(machine: Machine, install: Any) -> None:
    module = fake_amdsmi([("gfx942", 24 * GIB)], market_name="AMD Instinct MI325X OAM")
    module.amdsmi_get_gpu_compute_partition = lambda _: "CPX"
    module.amdsmi_get_gpu_memory_partition = lambda _: "NPS4"
    module.amdsmi_get_gpu_device_bdf = lambda _: "0000:05:00.3"
    module.amdsmi_get_fw_info = lambda _: {
        "fw_list": [{"fw_name": "AmdSmiFwBlock.AMDSMI_FW_ID_CP_MEC1", "fw_version": "138"}]
    }
    install(module)
    expected = Gpu("gfx942", 24 * GIB, "MI325X", "CPX", "NPS4", "0000:05:00.0", 138)
    assert machine.gpus(use_amdsmi=True) == (expected,)


def test_amdsmi_name_may_be_missing_and_the_device_id_tells(machine: Machine, install: Any) -> None:
    install(fake_amdsmi([("gfx942", 1)], market_name="N/A", device_id="0x74a2"))
    assert machine.detect(use_amdsmi=True).product == "MI308X"


def test_amdsmi_without_partition_leaves_it_to_the_files(machine: Machine, install: Any) -> None:
    module = fake_amdsmi([("gfx942", 1)])
    module.amdsmi_get_gpu_device_bdf = lambda _: "0000:05:00.0"
    install(module)
    machine.pci("0000:05:00.0", device="0x74a1", current_compute_partition="DPX")
    found = machine.detect(use_amdsmi=True)
    assert (found.product, found.partition) == ("MI300X", "DPX")


@pytest.mark.parametrize("fails_in", ["init", "handles", "asic"])
def test_amdsmi_failing_leaves_sysfs(machine: Machine, install: Any, fails_in: str) -> None:
    module = fake_amdsmi([("gfx950", 1)], fails_in=fails_in)
    install(module)
    machine.node(0, MI300X_NODE)
    assert machine.detect(use_amdsmi=True).gfx == "gfx942"
    assert module.started == module.stopped, "what was started is shut down"


@pytest.mark.parametrize("answer", [None, {}, {"fw_list": 7}, {"fw_list": [{}]}, "N/A", [1]])
def test_amdsmi_with_odd_answers(machine: Machine, install: Any, answer: object) -> None:
    module = fake_amdsmi([("gfx950", 1)])
    for name in ("compute_partition", "memory_partition", "device_bdf"):
        setattr(module, f"amdsmi_get_gpu_{name}", lambda _: answer)
    module.amdsmi_get_fw_info = lambda _: answer
    install(module)
    assert machine.gpus(use_amdsmi=True) == (Gpu("gfx950", 1),)


def test_amdsmi_without_memory_sizes(machine: Machine, install: Any) -> None:
    install(fake_amdsmi([("gfx950", 1)], fails_in="memory"))
    found = machine.detect(use_amdsmi=True)
    assert (found.gfx, found.device_memory_bytes) == ("gfx950", None)


@pytest.mark.parametrize("version", ["N/A", "", "gfx", "none"])
def test_amdsmi_with_a_nonsensical_version(machine: Machine, install: Any, version: str) -> None:
    install(fake_amdsmi([(version, 1)]))
    assert machine.detect(use_amdsmi=True).kind == "cpu"


def test_amdsmi_that_cannot_be_imported(machine: Machine, install: Any) -> None:
    install(None)
    assert machine.detect(use_amdsmi=True).kind == "cpu"


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (90402, "gfx942"),
        (90500, "gfx950"),
        (90010, "gfx90a"),
        (90008, "gfx908"),
        (110000, "gfx1100"),
        (110501, "gfx1151"),
        (120001, "gfx1201"),
        (0, None),
        (-90402, None),
        (99999, None),
        (10**15, None),
    ],
)
def test_gfx_name(version: int, name: str | None) -> None:
    assert gfx_name(version) == name


@pytest.mark.parametrize(
    ("meminfo", "limit", "expected"),
    [
        pytest.param("MemTotal: 4 kB\n", "max\n", 4096, id="no limit"),
        pytest.param("MemTotal: 4 kB\n", "1024\n", 1024, id="a container's limit"),
        pytest.param("MemTotal: 4 kB\n", "9223372036854771712\n", 4096, id="cgroup v1's no limit"),
        pytest.param("MemTotal: 4 kB\n", None, 4096, id="no cgroup"),
        pytest.param("nonsense", None, None, id="nothing to read"),
        pytest.param("nonsense", "9223372036854771712", None, id="nothing but no limit"),
        pytest.param("MemTotal: 0 kB\n", "x", None, id="no memory at all"),
    ],
)
def test_host_memory(
    machine: Machine, meminfo: str, limit: str | None, expected: int | None
) -> None:
    machine.write(machine.places.memory_info, meminfo)
    if limit is not None:
        machine.write(machine.places.memory_limits[0], limit)
    assert host_memory_bytes(machine.places) == expected


def test_this_machine_can_be_asked() -> None:
    found = detect(engine="gfx942")
    assert found.kind in ("amd", "nvidia", "cpu")
    assert found.description
