"""Reading the machine from made-up sysfs trees, and the table of architectures."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vllm_amdopt.hardware import (
    ARCHITECTURES,
    GIB,
    Hardware,
    architecture,
    detect,
    gfx_name,
    host_memory_bytes,
    virtual,
)


class Machine:
    """A tree of the files that `detect` reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.nodes = root / "nodes"
        self.nvidia = root / "gpus"
        self.memory = root / "meminfo"
        self.limit = root / "memory.max"

    def node(self, number: int, properties: str, banks: tuple[str, ...] = ()) -> None:
        directory = self.nodes / str(number)
        directory.mkdir(parents=True)
        (directory / "properties").write_text(properties)
        for index, bank in enumerate(banks):
            (directory / "mem_banks" / str(index)).mkdir(parents=True)
            (directory / "mem_banks" / str(index) / "properties").write_text(bank)

    def detect(self, **options: Any) -> Hardware:
        options.setdefault("use_amdsmi", False)
        return detect(
            self.nodes,
            nvidia_root=self.nvidia,
            memory_info=self.memory,
            memory_limits=(self.limit,),
            **options,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


CPU_NODE = "cpu_cores_count 96\nsimd_count 0\ngfx_target_version 0\n"
MI300X_NODE = "cpu_cores_count 0\nsimd_count 1216\nsimd_per_cu 4\ngfx_target_version 90402\n"
HBM = f"heap_type 1\nsize_in_bytes {192 * GIB}\nflags 0\nwidth 8192\n"


def test_eight_mi300x(machine: Machine) -> None:
    machine.node(0, CPU_NODE)
    machine.node(1, CPU_NODE)
    for number in range(2, 10):
        machine.node(number, MI300X_NODE, (HBM,))
    machine.memory.write_text("MemTotal:       2113409024 kB\nMemFree: 1 kB\n")
    found = machine.detect(engine="gfx950")
    assert found == Hardware("amd", "gfx942", 8, 192 * GIB, 2113409024 * 1024, None)
    assert not found.virtual
    assert found.description == "AMD gfx942 (MI300X, MI325X, MI300A, MI308X)"


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
    ],
)
def test_broken_node_is_no_gpu(machine: Machine, properties: str) -> None:
    machine.node(0, properties)
    assert machine.detect().kind == "cpu"


def test_broken_trees_are_no_gpu(machine: Machine) -> None:
    assert machine.detect().kind == "cpu", "nothing there"
    machine.nodes.write_text("a file where a directory should be")
    assert machine.detect().kind == "cpu"
    machine.nodes.unlink()
    (machine.nodes / "0" / "properties").mkdir(parents=True)
    assert machine.detect().kind == "cpu", "a directory where a file should be"
    (machine.nodes / "loop").symlink_to(machine.nodes / "loop")
    assert machine.detect().kind == "cpu", "a link to itself"


def test_nvidia(machine: Machine) -> None:
    (machine.nvidia / "0000:65:00.0").mkdir(parents=True)
    found = machine.detect(engine="gfx942")
    assert (found.kind, found.gfx, found.device_count, found.engine) == ("nvidia", None, 1, None)
    assert "stand-in" in found.description


def test_nvidia_driver_without_a_gpu(machine: Machine) -> None:
    machine.nvidia.mkdir()
    assert machine.detect().kind == "cpu"


def test_amd_counts_before_nvidia(machine: Machine) -> None:
    (machine.nvidia / "0").mkdir(parents=True)
    machine.node(0, MI300X_NODE)
    assert machine.detect().kind == "amd"


def test_cpu_with_and_without_an_engine(machine: Machine) -> None:
    machine.memory.write_text("MemTotal: 1024 kB\n")
    assert machine.detect() == Hardware("cpu", host_memory_bytes=1024**2)
    assert machine.detect(engine="gfx950") == virtual("gfx950", 1024**2)
    with pytest.raises(ValueError, match="unknown CPU engine 'gfx900'"):
        machine.detect(engine="gfx900")


@pytest.mark.parametrize(
    ("engine", "gfx", "words"),
    [
        ("gfx942", "gfx942", "virtual gfx942 (machine code emulated on the CPU)"),
        ("gfx950", "gfx950", "virtual gfx950 (machine code emulated on the CPU)"),
        ("interpreter", None, "CPU, kernels run by Triton's interpreter"),
        ("reference", None, "CPU, kernels run by the PyTorch references"),
    ],
)
def test_virtual(engine: str, gfx: str | None, words: str) -> None:
    hardware = virtual(engine)
    assert (hardware.kind, hardware.gfx, hardware.engine) == ("cpu", gfx, engine)
    assert hardware.virtual
    assert hardware.description == words


# --- amdsmi --------------------------------------------------------------------------------------


def fake_amdsmi(devices: list[tuple[str, int]], *, fails_in: str = "") -> ModuleType:
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
        return {"target_graphics_version": devices[handle][0]}

    def memory(handle: int, _: object) -> int:
        fail("memory")
        return devices[handle][1]

    module.amdsmi_init, module.amdsmi_shut_down = init, stop
    module.amdsmi_get_processor_handles = handles
    module.amdsmi_get_gpu_asic_info = asic
    module.amdsmi_get_gpu_memory_total = memory
    module.AmdSmiMemoryType = type("AmdSmiMemoryType", (), {"VRAM": 0})
    return module


def test_amdsmi_is_asked_first(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = fake_amdsmi([("gfx950", 288 * GIB)] * 8)
    monkeypatch.setitem(sys.modules, "amdsmi", module)
    machine.node(0, MI300X_NODE)
    found = machine.detect(use_amdsmi=True)
    assert (found.gfx, found.device_count, found.device_memory_bytes) == ("gfx950", 8, 288 * GIB)
    assert (module.started, module.stopped) == (1, 1)


@pytest.mark.parametrize("fails_in", ["init", "handles", "asic"])
def test_amdsmi_failing_leaves_sysfs(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    module: Any = fake_amdsmi([("gfx950", 1)], fails_in=fails_in)
    monkeypatch.setitem(sys.modules, "amdsmi", module)
    machine.node(0, MI300X_NODE)
    assert machine.detect(use_amdsmi=True).gfx == "gfx942"
    assert module.started == module.stopped, "what was started is shut down"


def test_amdsmi_without_memory_sizes(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", fake_amdsmi([("gfx950", 1)], fails_in="memory"))
    found = machine.detect(use_amdsmi=True)
    assert (found.gfx, found.device_memory_bytes) == ("gfx950", None)


@pytest.mark.parametrize("version", ["N/A", "", "gfx", "none"])
def test_amdsmi_with_a_nonsensical_version(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", fake_amdsmi([(version, 1)]))
    assert machine.detect(use_amdsmi=True).kind == "cpu"


def test_amdsmi_that_cannot_be_imported(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)
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
    machine.memory.write_text(meminfo)
    if limit is not None:
        machine.limit.write_text(limit)
    assert host_memory_bytes(machine.memory, (machine.limit,)) == expected


def test_this_machine_can_be_asked() -> None:
    found = detect(engine="gfx942")
    assert found.kind in ("amd", "nvidia", "cpu")
    assert found.description


def test_architectures() -> None:
    for name, facts in ARCHITECTURES.items():
        assert facts.gfx == name
        assert facts.products
        assert facts.source.startswith("https://")
        assert facts.lds_bytes_per_cu in (64 * 1024, 160 * 1024)
    assert {name for name, facts in ARCHITECTURES.items() if facts.instinct} == {
        "gfx90a",
        "gfx942",
        "gfx950",
    }
    assert ARCHITECTURES["gfx942"].fp8_flavour == "fnuz"
    assert ARCHITECTURES["gfx950"].fp8_flavour == "ocp"


@pytest.mark.parametrize(
    ("gfx", "entry"),
    [
        ("gfx942", "gfx942"),
        ("gfx1100", "gfx11"),
        ("gfx1151", "gfx11"),
        ("gfx1201", "gfx12"),
        *((gfx, None) for gfx in ("gfx1030", "gfx906", "gfx94", "", None)),
    ],
)
def test_architecture(gfx: str | None, entry: str | None) -> None:
    facts = architecture(gfx)
    assert (facts.gfx if facts else None) == entry
