"""Made-up machines: trees of the kernel's files that `detection` and the commands read."""

from __future__ import annotations

from pathlib import Path

from vllm_amdopt.detection import Gpu, Places, detect, gpus
from vllm_amdopt.hardware import GIB, Hardware

CPU_NODE = "cpu_cores_count 96\nsimd_count 0\ngfx_target_version 0\n"
HBM = f"heap_type 1\nsize_in_bytes {192 * GIB}\nflags 0\nwidth 8192\n"
MI300X_NODE = "cpu_cores_count 0\nsimd_count 1216\nsimd_per_cu 4\ngfx_target_version 90402\n"


def mi300x_node(bus: int, partition: int = 0) -> str:
    """A node as a recent kernel writes it; the partition number sits in the function's bits."""
    return (
        f"{MI300X_NODE}vendor_id 4098\ndevice_id 29857\ndomain 0\n"
        f"location_id {bus << 8 | partition}\nfw_version 177\nnum_xcc 8\n"
    )


class Machine:
    """A tree of the files that `detection` reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.places = Places.under(root)

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def node(self, number: int, properties: str, banks: tuple[str, ...] = ()) -> None:
        directory = self.places.kfd_nodes / str(number)
        self.write(directory / "properties", properties)
        for index, bank in enumerate(banks):
            self.write(directory / "mem_banks" / str(index) / "properties", bank)

    def pci(self, address: str, **files: str) -> None:
        for name, text in files.items():
            self.write(self.places.pci_devices / address / name, text)

    def detect(self, engine: str | None = None, use_amdsmi: bool = False) -> Hardware:
        return detect(engine=engine, places=self.places, use_amdsmi=use_amdsmi)

    def gpus(self, use_amdsmi: bool = False) -> tuple[Gpu, ...]:
        return gpus(self.places, use_amdsmi=use_amdsmi)

    def eight_mi300x(self, partition: str = "SPX") -> None:
        """The usual node, as a recent kernel shows it."""
        self.node(0, CPU_NODE)
        self.node(1, CPU_NODE)
        for number in range(2, 10):
            self.node(number, mi300x_node(bus=16 * number), (HBM,))
            self.pci(
                f"0000:{16 * number:02x}:00.0",
                vendor="0x1002\n",
                device="0x74a1\n",
                current_compute_partition=f"{partition}\n",
                current_memory_partition="NPS1\n",
            )
        self.write(self.places.memory_info, "MemTotal:       2113409024 kB\nMemFree: 1 kB\n")
