"""What GPU is here: AMD architecture facts as one table, and detection that never starts a GPU.

Not a place for decisions: the policy layer reads these facts, it does not live here. Standard
library only; `amdsmi` is used where it is installed, and nothing here creates a GPU context.
"""

import importlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

GIB = 1024**3
TB_PER_SECOND = 10**12

_SPECIFICATIONS = "https://rocm.docs.amd.com/en/latest/reference/gpu-specs.html"


@dataclass(frozen=True)
class Architecture:
    """One gfx target. Numbers are those of the first product named; `None` where they vary."""

    gfx: str
    products: tuple[str, ...]
    compute_units: int | None
    xcds: int | None
    lds_bytes_per_cu: int
    hbm_bytes: int | None
    hbm_bytes_per_second: int | None
    fp8_flavour: Literal["fnuz", "ocp", "none"]
    instinct: bool
    source: str


ARCHITECTURES: Mapping[str, Architecture] = {
    "gfx90a": Architecture(
        gfx="gfx90a",
        products=("MI250X (one of its two dies)", "MI250", "MI210"),
        compute_units=110,
        xcds=1,
        lds_bytes_per_cu=64 * 1024,
        hbm_bytes=64 * GIB,
        hbm_bytes_per_second=1_600_000_000_000,
        fp8_flavour="none",
        instinct=True,
        source=f"{_SPECIFICATIONS}; bandwidth: half of the MI250X data sheet's 3.2 TB/s",
    ),
    "gfx942": Architecture(
        gfx="gfx942",
        products=("MI300X", "MI325X", "MI300A", "MI308X"),
        compute_units=304,
        xcds=8,
        lds_bytes_per_cu=64 * 1024,
        hbm_bytes=192 * GIB,
        hbm_bytes_per_second=5_300_000_000_000,
        fp8_flavour="fnuz",
        instinct=True,
        source=f"{_SPECIFICATIONS}; bandwidth: MI300X data sheet, 5.3 TB/s",
    ),
    "gfx950": Architecture(
        gfx="gfx950",
        products=("MI355X", "MI350X"),
        compute_units=256,
        xcds=8,
        lds_bytes_per_cu=160 * 1024,
        hbm_bytes=288 * GIB,
        hbm_bytes_per_second=8 * TB_PER_SECOND,
        fp8_flavour="ocp",
        instinct=True,
        source=f"{_SPECIFICATIONS}; bandwidth: MI355X data sheet, 8 TB/s",
    ),
    "gfx11": Architecture(
        gfx="gfx11",
        products=("Radeon RX 7000, Radeon PRO W7000, Ryzen AI (RDNA3)",),
        compute_units=None,
        xcds=None,
        lds_bytes_per_cu=64 * 1024,
        hbm_bytes=None,
        hbm_bytes_per_second=None,
        fp8_flavour="none",
        instinct=False,
        source=_SPECIFICATIONS,
    ),
    "gfx12": Architecture(
        gfx="gfx12",
        products=("Radeon RX 9000, Radeon AI PRO R9700 (RDNA4)",),
        compute_units=None,
        xcds=None,
        lds_bytes_per_cu=64 * 1024,
        hbm_bytes=None,
        hbm_bytes_per_second=None,
        fp8_flavour="ocp",
        instinct=False,
        source=_SPECIFICATIONS,
    ),
}
"""By gfx name; `gfx11` and `gfx12` stand for their whole families (see `architecture`)."""

CPU_ENGINES: tuple[str, ...] = ("gfx942", "gfx950", "interpreter", "reference")
"""What may run our kernels on a CPU: emulated machine code, Triton's interpreter, plain PyTorch."""


def architecture(gfx: str | None) -> Architecture | None:
    """The facts of `gfx` ("gfx942", "gfx1201", ...), or None where the table has none."""
    if gfx is None:
        return None
    if gfx in ARCHITECTURES:
        return ARCHITECTURES[gfx]
    if re.fullmatch(r"gfx1[12][0-9a-f]{2}", gfx):
        return ARCHITECTURES[gfx[:5]]
    return None


@dataclass(frozen=True)
class Hardware:
    """The machine as the policy sees it.

    `engine` is the CPU engine in use on a machine without a GPU and None elsewhere; when it is a
    gfx name, `gfx` is that name too: the machine is then a virtual GPU of that kind.
    """

    kind: Literal["amd", "nvidia", "cpu"]
    gfx: str | None = None
    device_count: int = 0
    device_memory_bytes: int | None = None
    host_memory_bytes: int | None = None
    engine: str | None = None

    @property
    def virtual(self) -> bool:
        """Whether our kernels run on the CPU here, standing in for a GPU."""
        return self.kind == "cpu" and self.engine is not None

    @property
    def description(self) -> str:
        """A few words for the head of a table."""
        if self.kind == "amd":
            facts = architecture(self.gfx)
            products = f" ({', '.join(facts.products)})" if facts else ""
            return f"AMD {self.gfx or 'GPU of unknown architecture'}{products}"
        if self.kind == "nvidia":
            return "NVIDIA GPU (a stand-in: nothing here is measured on AMD)"
        if self.engine is None:
            return "CPU without a GPU"
        if self.gfx is not None:
            return f"virtual {self.gfx} (machine code emulated on the CPU)"
        return f"CPU, kernels run by {_ENGINE_WORDS[self.engine]}"


_ENGINE_WORDS = {"interpreter": "Triton's interpreter", "reference": "the PyTorch references"}


def virtual(engine: str, host_memory_bytes: int | None = None) -> Hardware:
    """A machine without a GPU whose kernels `engine` runs. ValueError on an unknown engine."""
    if engine not in CPU_ENGINES:
        raise ValueError(f"unknown CPU engine {engine!r}: choose one of {', '.join(CPU_ENGINES)}")
    return Hardware(
        kind="cpu",
        gfx=engine if engine.startswith("gfx") else None,
        device_count=1,
        host_memory_bytes=host_memory_bytes,
        engine=engine,
    )


def detect(
    sysfs_root: str | Path = "/sys/class/kfd/kfd/topology/nodes",
    *,
    engine: str | None = None,
    nvidia_root: str | Path = "/proc/driver/nvidia/gpus",
    memory_info: str | Path = "/proc/meminfo",
    memory_limits: Iterable[str | Path] = (
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ),
    use_amdsmi: bool = True,
) -> Hardware:
    """The hardware of this machine; `engine` is the CPU engine to name where there is no GPU.

    AMD GPUs are read through `amdsmi` where it is installed, else from the kernel's KFD topology
    files; NVIDIA GPUs from /proc. Neither creates a GPU context. Unreadable or nonsensical files
    count as "no such GPU": this function raises only on an unknown `engine`.
    """
    host_memory = host_memory_bytes(memory_info, memory_limits)
    devices = (_amdsmi_devices() if use_amdsmi else []) or _kfd_devices(Path(sysfs_root))
    if devices:
        # A host may also hold a small integrated GPU: the one with the most memory is meant.
        gfx, memory = max(devices, key=lambda device: device[1] or 0)
        return Hardware(
            kind="amd",
            gfx=gfx,
            device_count=sum(1 for name, _ in devices if name == gfx),
            device_memory_bytes=memory,
            host_memory_bytes=host_memory,
        )
    nvidia = _directory_names(Path(nvidia_root))
    if nvidia:
        return Hardware(kind="nvidia", device_count=len(nvidia), host_memory_bytes=host_memory)
    if engine is not None:
        return virtual(engine, host_memory)
    return Hardware(kind="cpu", host_memory_bytes=host_memory)


def host_memory_bytes(
    memory_info: str | Path = "/proc/meminfo", memory_limits: Iterable[str | Path] = ()
) -> int | None:
    """Memory this process may use, in bytes: the host's, or a container's limit if smaller."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", _read(Path(memory_info)), re.MULTILINE)
    amounts = [int(found.group(1)) * 1024] if found else []
    for path in memory_limits:
        text = _read(Path(path)).strip()
        if text.isdigit():  # "max" means no limit
            amounts.append(int(text))
    # cgroup v1 says "no limit" with a number near 2^63; alone it tells nothing.
    amounts = [amount for amount in amounts if 0 < amount < 2**60]
    return min(amounts, default=None)


def gfx_name(target_version: int) -> str | None:
    """KFD's `gfx_target_version` as a gfx name: 90402 -> gfx942, 90010 -> gfx90a; None for 0."""
    major, minor, step = target_version // 10000, target_version // 100 % 100, target_version % 100
    if major <= 0 or minor > 15 or step > 15:
        return None
    return f"gfx{major}{minor:x}{step:x}"


def _amdsmi_devices() -> list[tuple[str, int | None]]:
    """(gfx, memory bytes) of each GPU that amdsmi lists; [] where it is absent or fails."""
    try:
        amdsmi = importlib.import_module("amdsmi")
    except Exception:  # a broken installation raises OSError, KeyError, ...: all mean "absent"
        return []
    devices: list[tuple[str, int | None]] = []
    try:
        amdsmi.amdsmi_init()
        try:
            for handle in amdsmi.amdsmi_get_processor_handles():
                version = str(amdsmi.amdsmi_get_gpu_asic_info(handle)["target_graphics_version"])
                try:
                    kind = amdsmi.AmdSmiMemoryType.VRAM
                    memory = int(amdsmi.amdsmi_get_gpu_memory_total(handle, kind))
                except Exception:
                    memory = None
                if re.fullmatch(r"gfx[0-9a-f]{3,4}", version):
                    devices.append((version, memory))
        finally:
            amdsmi.amdsmi_shut_down()
    except Exception:
        return []
    return devices


def _kfd_devices(root: Path) -> list[tuple[str, int | None]]:
    """(gfx, memory bytes) of each GPU node under KFD's topology directory."""
    devices: list[tuple[str, int | None]] = []
    for name in _directory_names(root):
        # In a container the files of GPUs that it may not use are empty or unreadable.
        properties = _properties(root / name / "properties")
        gfx = gfx_name(properties.get("gfx_target_version", 0))
        if gfx is None or properties.get("simd_count", 0) <= 0:
            continue
        banks = root / name / "mem_banks"
        memory = 0
        for bank in _directory_names(banks):
            facts = _properties(banks / bank / "properties")
            if facts.get("heap_type") in (1, 2):  # frame buffer, public or private
                memory += facts.get("size_in_bytes", 0)
        devices.append((gfx, memory or None))
    return devices


def _properties(path: Path) -> dict[str, int]:
    """A KFD properties file: one `name number` a line; other lines are left out."""
    facts: dict[str, int] = {}
    for line in _read(path).splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            facts[words[0]] = int(words[1])
    return facts


def _directory_names(root: Path) -> list[str]:
    """Names under `root` in numeric order; [] where it cannot be listed."""
    try:
        names = os.listdir(root)
    except OSError:
        return []
    return sorted(names, key=lambda name: (len(name), name))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
