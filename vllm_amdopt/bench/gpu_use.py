"""Who uses the GPUs of this machine: read from KFD's files, amd-smi or nvidia-smi; locks nothing.

Needs no rights and starts no GPU. Files under a root and commands through a runner that are both
given, so that made-up machines can be read as well.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GIB = 1 << 30
QUIET_BYTES = GIB
"""What a GPU without work holds at most: firmware and the driver's own."""

Run = Callable[[Sequence[str]], str | None]
"""A command's output, or None where it is not there or fails."""


@dataclass(frozen=True)
class GpuUse:
    """One GPU: `identity` is stable over reboots where the driver has one. Bytes.

    `processes`: id -> bytes of GPU memory; the ids are the host's also inside a container.
    """

    index: int
    identity: str
    memory_used: int | None = None
    processes: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """Where the readers look."""

    root: Path = Path("/")
    run: Run = field(default=lambda command: run_command(command))


def run_command(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def gpus_in_use(machine: Machine) -> tuple[GpuUse, ...]:
    """Every GPU with its use; () on a machine without. The first source that answers counts."""
    for source in (_kfd, _amd_smi, _nvidia_smi):
        found = source(machine)
        if found:
            return tuple(found)
    return ()


def foreign_use(
    gpus: Iterable[GpuUse], ours: Iterable[int] = (), expect_memory: bool = False
) -> list[str]:
    """What is on these GPUs that is not `ours`, in sentences.

    expect_memory: our server holds memory there, so that only processes can tell.
    """
    known = set(ours)
    sentences = []
    for gpu in gpus:
        others = {process: held for process, held in gpu.processes.items() if process not in known}
        for process, held in others.items():
            sentences.append(
                f"process {process} holds {held / GIB:.1f} GiB on GPU {gpu.index}: it is not part "
                "of this run"
            )
        if not expect_memory and not gpu.processes and (gpu.memory_used or 0) > QUIET_BYTES:
            sentences.append(
                f"{(gpu.memory_used or 0) / GIB:.1f} GiB are in use on GPU {gpu.index}, by a "
                "process that cannot be seen from here"
            )
    return sentences


# --- KFD: AMD's driver --------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _names(path: Path) -> list[str]:
    try:
        return sorted((entry.name for entry in path.iterdir()), key=lambda name: (len(name), name))
    except OSError:
        return []


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,20}", text) else None


def _kfd(machine: Machine) -> list[GpuUse]:
    """Memory of each process by /sys/class/kfd/kfd/proc/ID/vram_GPU, of each GPU by its PCI files.

    A process that has closed its GPU but is not gone keeps its directory with zeros in it.
    """
    kfd = machine.root / "sys/class/kfd/kfd"
    nodes = kfd / "topology/nodes"
    gpu_ids: list[tuple[str, str, Path]] = []
    for name in _names(nodes):
        gpu_id = _read(nodes / name / "gpu_id")
        if not _whole(gpu_id):  # a CPU has 0; a GPU that this container may not use, nothing
            continue
        properties = dict(
            line.split(maxsplit=1)
            for line in _read(nodes / name / "properties").splitlines()
            if len(line.split()) == 2
        )
        unique = _whole(properties.get("unique_id", "")) or 0
        location = _whole(properties.get("location_id", "")) or 0
        domain = _whole(properties.get("domain", "")) or 0
        address = f"{domain:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}"
        identity = f"{unique:016x}" if unique else address
        function = location & 0x7  # the number of a partition; they share the memory counter
        pci = machine.root / "sys/bus/pci/devices" / f"{address}.0"
        gpu_ids.append((gpu_id, f"{identity}.{function}" if function else identity, pci))
    processes: dict[str, dict[int, int]] = {gpu_id: {} for gpu_id, _, _ in gpu_ids}
    for name in _names(kfd / "proc"):
        process = _whole(name)
        if process is None:
            continue
        for gpu_id in processes:
            held = _whole(_read(kfd / "proc" / name / f"vram_{gpu_id}"))
            if held:
                processes[gpu_id][process] = held
    return [
        GpuUse(index, identity, _whole(_read(pci / "mem_info_vram_used")), processes[gpu_id])
        for index, (gpu_id, identity, pci) in enumerate(gpu_ids)
    ]


# --- amd-smi and nvidia-smi ---------------------------------------------------------------------


def _amd_smi(machine: Machine) -> list[GpuUse]:
    """`amd-smi process --json`; the shape differs between releases, so all known ones are read."""
    text = machine.run(("amd-smi", "process", "--json"))
    if text is None:
        return []
    try:
        answer = json.loads(text)
    except ValueError:
        return []
    entries = answer.get("gpu_data", []) if isinstance(answer, dict) else answer
    found = []
    for entry in entries if isinstance(entries, list) else []:
        index = entry.get("gpu") if isinstance(entry, dict) else None
        if not isinstance(index, int):
            continue
        processes: dict[int, int] = {}
        listed = entry.get("process_list", [])
        for item in listed if isinstance(listed, list) else []:
            facts = item.get("process_info", item) if isinstance(item, dict) else None
            if not isinstance(facts, dict):  # "No running processes detected"
                continue
            process = _whole(str(facts.get("pid", "")))
            usage = facts.get("memory_usage")
            held = usage.get("vram_mem", usage) if isinstance(usage, dict) else usage
            held = held if held is not None else facts.get("mem_usage", facts.get("vram_mem"))
            if process is not None:
                processes[process] = _bytes(held)
        found.append(GpuUse(index, f"amd-smi-{index}", None, processes))
    return found


_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def _bytes(value: object) -> int:
    """amd-smi's `{"value": 5, "unit": "MB"}`, `"5 MB"` or plain bytes."""
    unit = "B"
    if isinstance(value, dict):
        unit, value = str(value.get("unit", "B")), value.get("value")
    elif isinstance(value, str) and " " in value:
        value, unit = value.split(maxsplit=1)
    try:
        return int(float(str(value)) * _UNITS.get(unit.strip().upper(), 1))
    except ValueError:
        return 0


def _nvidia_smi(machine: Machine) -> list[GpuUse]:
    text = machine.run(
        ("nvidia-smi", "--query-gpu=index,uuid,memory.used", "--format=csv,noheader,nounits")
    )
    if text is None:
        return []
    used: dict[str, dict[int, int]] = {}
    listed = machine.run(
        (
            "nvidia-smi",
            "--query-compute-apps=gpu_uuid,pid,used_memory",
            "--format=csv,noheader,nounits",
        )
    )
    for line in (listed or "").splitlines():
        fields = [part.strip() for part in line.split(",")]
        if len(fields) == 3 and _whole(fields[1]) is not None:
            # "[N/A]" inside containers
            used.setdefault(fields[0], {})[int(fields[1])] = (_whole(fields[2]) or 0) << 20
    found = []
    for line in text.splitlines():
        fields = [part.strip() for part in line.split(",")]
        if len(fields) == 3 and _whole(fields[0]) is not None:
            memory = _whole(fields[2])
            found.append(
                GpuUse(
                    int(fields[0]),
                    fields[1],
                    None if memory is None else memory << 20,
                    used.get(fields[1], {}),
                )
            )
    return found


# --- watching -----------------------------------------------------------------------------------


class Watcher:
    """Looks at the GPUs once a second while something is measured, in a thread of its own.

    Whoever is there when it starts is ours: the server has started all of its processes by then,
    and inside a container its ids could not be told from others'.
    """

    def __init__(
        self, machine: Machine, indices: Sequence[int], seconds_between: float = 1.0
    ) -> None:
        self._machine = machine
        self._indices = frozenset(indices)
        self._seconds = seconds_between
        self._ours: frozenset[int] = frozenset()
        self._seen: dict[str, None] = {}
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if not self._indices:
            return
        self._ours = frozenset(process for gpu in self._chosen() for process in gpu.processes)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(timeout=30)

    def take(self) -> list[str]:
        """What was foreign since the last call, in sentences."""
        self.look()
        seen, self._seen = list(self._seen), {}
        return seen

    def look(self) -> None:
        for sentence in foreign_use(self._chosen(), self._ours, expect_memory=True):
            # One sentence for each process and GPU, whatever it holds from second to second.
            key = re.sub(r"holds [\d.]+ GiB", "was seen", sentence)
            self._seen.setdefault(key)

    def _chosen(self) -> list[GpuUse]:
        if not self._indices:
            return []
        return [gpu for gpu in gpus_in_use(self._machine) if gpu.index in self._indices]

    def _watch(self) -> None:
        while not self._end.wait(self._seconds):
            with contextlib.suppress(Exception):  # a look that fails sees nothing
                self.look()
