"""What `doctor` judges and `collect-env` prints: one record, gathered without starting anything."""

import os
import re
import resource
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vllm_amdopt import detection
from vllm_amdopt.commands.installation import (
    CacheDirectory,
    Installation,
    cache_directories,
    read_installation,
)
from vllm_amdopt.detection import Gpu, Places, read
from vllm_amdopt.hardware import Hardware

Access = Literal["open", "denied", "absent"]


@dataclass(frozen=True)
class Facts:
    """The machine and the software on it. Sizes in bytes; None where something is not known.

    `on_bus`: products on the PCI bus, whether or not a driver serves them. `devices`: how this
    process may use /dev/kfd and the render nodes in /dev/dri. `locked_memory_bytes` is None where
    there is no limit. `gpu_processes`: ids of other processes that hold a GPU context.
    """

    hardware: Hardware = field(default_factory=lambda: Hardware("cpu"))
    gpus: tuple[Gpu, ...] = ()
    on_bus: tuple[str, ...] = ()
    rocm: str | None = None
    driver: str | None = None
    python: tuple[int, int] = (3, 12)
    installation: Installation = field(default_factory=Installation)
    environment: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, Access] = field(default_factory=dict)
    numa_balancing: bool | None = None
    shared_memory_bytes: int | None = None
    locked_memory_bytes: int | None = None
    gpu_processes: tuple[int, ...] = ()
    caches: tuple[CacheDirectory, ...] = ()

    @property
    def expects_amd(self) -> bool:
        """Whether an AMD GPU is here, even if this process cannot use it."""
        return self.hardware.kind == "amd" or (self.hardware.kind == "cpu" and bool(self.on_bus))


def gather(
    environment: Mapping[str, str],
    *,
    root: Path = Path("/"),
    search_path: Iterable[str] | None = None,
    use_amdsmi: bool = True,
) -> Facts:
    """The facts of this machine, or of the made-up one below `root`. Never raises for odd files."""
    places = Places.under(root)
    gpus = detection.gpus(places, use_amdsmi=use_amdsmi)
    return Facts(
        hardware=detection.summary(gpus, places),
        gpus=gpus,
        on_bus=detection.pci_gpus(places),
        rocm=detection.rocm_version(places),
        driver=detection.driver_version(places),
        python=(sys.version_info.major, sys.version_info.minor),
        installation=read_installation(sys.path if search_path is None else search_path),
        environment=dict(environment),
        devices={"/dev/kfd": _access(root / "dev/kfd"), "/dev/dri": _render_access(root)},
        numa_balancing=_numa_balancing(read(root / "proc/sys/kernel/numa_balancing")),
        shared_memory_bytes=_size(root / "dev/shm"),
        locked_memory_bytes=_locked_memory(),
        gpu_processes=detection.processes_on_gpu(places),
        caches=cache_directories(environment, Path(environment.get("HOME") or Path.home())),
    )


def _access(path: Path) -> Access:
    if not path.exists():
        return "absent"
    return "open" if os.access(path, os.R_OK | os.W_OK) else "denied"


def _render_access(root: Path) -> Access:
    """The best access to any render node: a container may be given some of them only."""
    directory = root / "dev/dri"
    names = detection.directory_names(directory)
    found = {_access(directory / name) for name in names if re.fullmatch(r"renderD\d+", name)}
    order: tuple[Access, ...] = ("open", "denied", "absent")
    return next((access for access in order if access in found), "absent")


def _numa_balancing(text: str) -> bool | None:
    """0 is off; 1 and 2 (memory tiering) are on."""
    text = text.strip()
    return text != "0" if text in ("0", "1", "2", "3") else None


def _size(path: Path) -> int | None:
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_blocks * status.f_frsize


def _locked_memory() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft
