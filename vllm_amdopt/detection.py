"""Reads what GPUs this machine has, through amdsmi or the kernel's files; never starts a GPU.

Facts about products are in `hardware`. Standard library only, `amdsmi` where it is installed.
Unreadable or nonsensical files count as "not known": nothing here raises because of them.
"""

import importlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_amdopt.hardware import (
    PCI_VENDOR_AMD,
    PRODUCT_OF_PCI_DEVICE,
    Hardware,
    product,
    virtual,
)

COMPUTE_PARTITIONS = ("SPX", "DPX", "TPX", "QPX", "CPX")
MEMORY_PARTITIONS = ("NPS1", "NPS2", "NPS4", "NPS8")


@dataclass(frozen=True)
class Places:
    """Where the kernel and ROCm keep what is read here; tests point them at made-up trees.

    `memory_limits`: a container's limit, cgroup v2 and v1.
    """

    kfd_nodes: Path = Path("/sys/class/kfd/kfd/topology/nodes")
    kfd_processes: Path = Path("/sys/class/kfd/kfd/proc")
    pci_devices: Path = Path("/sys/bus/pci/devices")
    amdgpu_version: Path = Path("/sys/module/amdgpu/version")
    nvidia_gpus: Path = Path("/proc/driver/nvidia/gpus")
    memory_info: Path = Path("/proc/meminfo")
    memory_limits: tuple[Path, ...] = (
        Path("/sys/fs/cgroup/memory.max"),
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    )
    rocm: Path = Path("/opt/rocm")

    @classmethod
    def under(cls, root: Path) -> "Places":
        """The same places below another root directory."""

        def moved(path: Path) -> Path:
            return root / path.relative_to("/")

        usual = cls()
        return cls(
            kfd_nodes=moved(usual.kfd_nodes),
            kfd_processes=moved(usual.kfd_processes),
            pci_devices=moved(usual.pci_devices),
            amdgpu_version=moved(usual.amdgpu_version),
            nvidia_gpus=moved(usual.nvidia_gpus),
            memory_info=moved(usual.memory_info),
            memory_limits=tuple(moved(path) for path in usual.memory_limits),
            rocm=moved(usual.rocm),
        )


@dataclass(frozen=True)
class Gpu:
    """One AMD device as the driver shows it: a GPU, a die of an MI250, or a partition.

    `memory_bytes`: of this device. `address`: PCI, "0000:05:00.0". `mec_firmware`: version of the
    compute microcode, which decides on HSA_NO_SCRATCH_RECLAIM. None: not known.
    """

    gfx: str
    memory_bytes: int | None = None
    product: str | None = None
    compute_partition: str | None = None
    memory_partition: str | None = None
    address: str | None = None
    mec_firmware: int | None = None


def detect(
    *, engine: str | None = None, places: Places | None = None, use_amdsmi: bool = True
) -> Hardware:
    """The hardware of this machine; `engine` is the CPU engine to name where there is no GPU.

    Creates no GPU context, and raises only on an unknown `engine`.
    """
    places = places or Places()
    return summary(gpus(places, use_amdsmi=use_amdsmi), places, engine=engine)


def summary(found: tuple[Gpu, ...], places: Places, *, engine: str | None = None) -> Hardware:
    """`found`, or what else is here where that is empty, as the policy sees it."""
    host_memory = host_memory_bytes(places)
    if found:
        # A host may also hold a small integrated GPU: the one with the most memory is meant.
        main = max(found, key=lambda gpu: gpu.memory_bytes or 0)
        return Hardware(
            kind="amd",
            gfx=main.gfx,
            device_count=sum(1 for gpu in found if gpu.gfx == main.gfx),
            device_memory_bytes=main.memory_bytes,
            host_memory_bytes=host_memory,
            product=main.product,
            partition=main.compute_partition,
        )
    nvidia = directory_names(places.nvidia_gpus)
    if nvidia:
        return Hardware(kind="nvidia", device_count=len(nvidia), host_memory_bytes=host_memory)
    if engine is not None:
        return virtual(engine, host_memory)
    return Hardware(kind="cpu", host_memory_bytes=host_memory)


def gpus(places: Places | None = None, *, use_amdsmi: bool = True) -> tuple[Gpu, ...]:
    """Every AMD device, in the driver's order: by amdsmi where it answers, else by KFD's files."""
    places = places or Places()
    found = (_amdsmi_gpus() if use_amdsmi else []) or _kfd_gpus(places.kfd_nodes)
    return tuple(_completed(gpu, places.pci_devices) for gpu in found)


def pci_gpus(places: Places | None = None) -> tuple[str, ...]:
    """Products on the PCI bus, also those that no driver has taken and no container was given."""
    root = (places or Places()).pci_devices
    names = []
    for address in directory_names(root):
        name = PRODUCT_OF_PCI_DEVICE.get(_hexadecimal(root / address / "device") or -1)
        if name is not None and _hexadecimal(root / address / "vendor") == PCI_VENDOR_AMD:
            names.append(name)
    return tuple(names)


def host_memory_bytes(places: Places | None = None) -> int | None:
    """Memory this process may use, in bytes: the host's, or a container's limit if smaller."""
    places = places or Places()
    found = re.search(r"^MemTotal:\s*(\d{1,15}) kB", read(places.memory_info), re.MULTILINE)
    amounts = [int(found.group(1)) * 1024] if found else []
    amounts += [_whole_number(read(path)) or 0 for path in places.memory_limits]
    # cgroup v2 says "no limit" with "max", v1 with a number near 2^63; alone they tell nothing.
    return min((amount for amount in amounts if 0 < amount < 2**60), default=None)


def rocm_version(places: Places | None = None) -> str | None:
    """ROCm's version ("6.4.2-120"), from the file that its packages install."""
    text = read((places or Places()).rocm / ".info" / "version").strip()
    return text if re.fullmatch(r"\d+(\.\d+)+[\w.+-]{0,40}", text) else None


def driver_version(places: Places | None = None) -> str | None:
    """The version of AMD's packaged driver; None also where the kernel's own amdgpu is loaded."""
    text = read((places or Places()).amdgpu_version).strip()
    return text if re.fullmatch(r"[\w.+-]{1,40}", text) else None


def processes_on_gpu(places: Places | None = None) -> tuple[int, ...]:
    """Ids of the processes that hold a GPU compute context, other than this one."""
    names = directory_names((places or Places()).kfd_processes)
    ids = (int(name) for name in names if name.isascii() and name.isdigit())
    return tuple(number for number in ids if number != os.getpid())


def gfx_name(target_version: int) -> str | None:
    """KFD's `gfx_target_version` as a gfx name: 90402 -> gfx942, 90010 -> gfx90a; None for 0."""
    major, minor, step = target_version // 10000, target_version // 100 % 100, target_version % 100
    if not 0 < major < 100 or minor > 15 or step > 15:
        return None
    return f"gfx{major}{minor:x}{step:x}"


# --- amdsmi --------------------------------------------------------------------------------------


@contextmanager
def amdsmi_session() -> Iterator[Any]:
    """The amdsmi module, started, or None where it is absent or does not start."""
    try:
        module = importlib.import_module("amdsmi")
        module.amdsmi_init()
    except Exception:  # a broken installation raises OSError, KeyError, ...: all mean "absent"
        yield None
        return
    try:
        yield module
    finally:
        attempt(module.amdsmi_shut_down)


def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` returns, or None: amdsmi raises for everything that a GPU does not support."""
    try:
        return call(*arguments)
    except Exception:
        return None


def _amdsmi_gpus() -> list[Gpu]:
    with amdsmi_session() as module:
        if module is None:
            return []
        handles = attempt(module.amdsmi_get_processor_handles)
        if not isinstance(handles, list):
            return []
        found = (attempt(_amdsmi_gpu, module, handle) for handle in handles)
        return [gpu for gpu in found if gpu is not None]


def _amdsmi_gpu(module: Any, handle: Any) -> Gpu | None:
    facts = module.amdsmi_get_gpu_asic_info(handle)
    gfx = str(facts["target_graphics_version"])
    if not re.fullmatch(r"gfx[0-9a-f]{3,4}", gfx):
        return None

    def ask(name: str, *arguments: Any) -> Any:
        # Old releases lack some functions.
        return attempt(lambda: getattr(module, name)(handle, *arguments))

    kind = getattr(getattr(module, "AmdSmiMemoryType", None), "VRAM", None)
    memory = ask("amdsmi_get_gpu_memory_total", kind)
    device = _from_hexadecimal(str(facts.get("device_id", ""))) or -1
    exact = product(str(facts.get("market_name", "")))
    return Gpu(
        gfx=gfx,
        memory_bytes=memory if isinstance(memory, int) and memory > 0 else None,
        product=exact.name if exact else PRODUCT_OF_PCI_DEVICE.get(device),
        compute_partition=_one_of(COMPUTE_PARTITIONS, ask("amdsmi_get_gpu_compute_partition")),
        memory_partition=_one_of(MEMORY_PARTITIONS, ask("amdsmi_get_gpu_memory_partition")),
        address=_address(ask("amdsmi_get_gpu_device_bdf")),
        mec_firmware=_mec_firmware(ask("amdsmi_get_fw_info")),
    )


def _mec_firmware(answer: Any) -> int | None:
    """From amdsmi's {"fw_list": [{"fw_name": <... CP_MEC1>, "fw_version": "177"}, ...]}."""
    try:
        for entry in answer["fw_list"]:
            if re.search(r"CP_MEC1\b", str(entry["fw_name"])):
                return _whole_number(str(entry["fw_version"]))
    except (TypeError, KeyError):
        pass
    return None


# --- the kernel's files --------------------------------------------------------------------------


def _kfd_gpus(root: Path) -> list[Gpu]:
    """Each GPU node under KFD's topology directory."""
    found = []
    for name in directory_names(root):
        # In a container the files of GPUs that it may not use are empty or unreadable.
        properties = _properties(root / name / "properties")
        gfx = gfx_name(properties.get("gfx_target_version", 0))
        if gfx is None or properties.get("simd_count", 0) <= 0:
            continue
        banks = root / name / "mem_banks"
        memory = 0
        for bank in directory_names(banks):
            facts = _properties(banks / bank / "properties")
            if facts.get("heap_type") in (1, 2):  # frame buffer, public or private
                memory += facts.get("size_in_bytes", 0)
        found.append(
            Gpu(
                gfx=gfx,
                memory_bytes=memory or None,
                product=PRODUCT_OF_PCI_DEVICE.get(properties.get("device_id", 0)),
                address=_kfd_address(properties),
                mec_firmware=properties.get("fw_version") or None,  # 0 in a virtual machine
            )
        )
    return found


def _kfd_address(properties: dict[str, int]) -> str | None:
    """The PCI address; the kernel puts a partition's number into the bits of the function."""
    location = properties.get("location_id")
    if location is None:
        return None
    bus, device = location >> 8 & 0xFF, location >> 3 & 0x1F
    return f"{properties.get('domain', 0):04x}:{bus:02x}:{device:02x}.0"


def _completed(gpu: Gpu, pci_devices: Path) -> Gpu:
    """`gpu` with what its PCI directory says and nobody else did."""
    if gpu.address is None:
        return gpu
    directory = pci_devices / gpu.address
    return replace(
        gpu,
        compute_partition=gpu.compute_partition
        or _one_of(COMPUTE_PARTITIONS, read(directory / "current_compute_partition")),
        memory_partition=gpu.memory_partition
        or _one_of(MEMORY_PARTITIONS, read(directory / "current_memory_partition")),
        product=gpu.product or PRODUCT_OF_PCI_DEVICE.get(_hexadecimal(directory / "device") or -1),
    )


def _properties(path: Path) -> dict[str, int]:
    """A KFD properties file: one `name number` a line; other lines are left out."""
    facts: dict[str, int] = {}
    for line in read(path).splitlines():
        words = line.split()
        if len(words) == 2:
            number = _whole_number(words[1])
            if number is not None:
                facts[words[0]] = number
    return facts


def _whole_number(text: str) -> int | None:
    """A plain decimal number of at most 64 bits; None for everything else, "-1" and "²" too."""
    found = re.fullmatch(r"\s*([0-9]{1,20})\s*", text)
    return int(found.group(1)) if found else None


def _from_hexadecimal(text: str) -> int | None:
    found = re.fullmatch(r"\s*0x([0-9a-fA-F]{1,8})\s*", text)
    return int(found.group(1), 16) if found else None


def _hexadecimal(path: Path) -> int | None:
    return _from_hexadecimal(read(path))


def _one_of(names: Iterable[str], answer: Any) -> str | None:
    text = str(answer).strip().upper()
    return text if text in names else None


def _address(answer: Any) -> str | None:
    """A PCI address without the function, which is 0 for the GPU that a partition belongs to."""
    found = re.fullmatch(r"([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2})\.[0-7]", str(answer).lower())
    return f"{found.group(1)}.0" if found else None


def directory_names(root: Path) -> list[str]:
    """Names under `root` in numeric order; [] where it cannot be listed."""
    try:
        names = os.listdir(root)
    except (OSError, ValueError):
        return []
    return sorted(names, key=lambda name: (len(name), name))


def read(path: Path, limit: int = 1 << 20) -> str:
    """At most `limit` characters of a file; "" where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(limit)
    except (OSError, ValueError):
        return ""


def counted(names: Iterable[str]) -> str:
    """ "8 × MI300X, 1 × MI210": for sentences that name GPUs."""
    return ", ".join(f"{count} × {name}" for name, count in Counter(names).items())
