"""Records of emulated launches: written by each process, read and added up by `emulate-report`.

Standard library only: reading a report needs neither NumPy nor Triton. `recording` writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = "vllm-amdopt emulation 1"
SUFFIX = ".json"


class RecordError(ValueError):
    """A record that cannot be read; the message is a sentence that names the file."""


@dataclass
class KernelRecord:
    """What the launches of one kernel did, added up.

    source: file and line where the kernel begins, empty where it was compiled without lines.
    instructions: wave instructions by class; bytes: what lanes asked for, by kind of memory, exact.
    lines: source line -> wave instructions. seconds are the emulator's and say nothing of a GPU.
    """

    kernel: str
    source: str = ""
    launches: int = 0
    workgroups: int = 0
    wave_instructions: int = 0
    seconds: float = 0.0
    instructions: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    def add(self, other: KernelRecord) -> None:
        """Add the counts of another record of the same kernel."""
        self.launches += other.launches
        self.workgroups += other.workgroups
        self.wave_instructions += other.wave_instructions
        self.seconds += other.seconds
        for mine, theirs in (
            (self.instructions, other.instructions),
            (self.bytes, other.bytes),
            (self.lines, other.lines),
        ):
            for key, count in theirs.items():
                if count:
                    mine[key] = mine.get(key, 0) + count

    @property
    def read_bytes(self) -> int:
        """Bytes read from global memory; from HBM if no cache held them."""
        return self.bytes.get("global_load", 0) + self.bytes.get("smem_load", 0)

    @property
    def lds_read_bytes(self) -> int:
        """Bytes read from LDS."""
        return self.bytes.get("lds_load", 0)

    @property
    def lds_written_bytes(self) -> int:
        """Bytes written to LDS, those that come straight from global memory included."""
        return self.bytes.get("lds_store", 0) + self.bytes.get("global_to_lds", 0)

    @property
    def written_bytes(self) -> int:
        """Bytes written to global memory, atomics included."""
        return self.bytes.get("global_store", 0) + self.bytes.get("global_atomic", 0)


@dataclass
class ProcessRecord:
    """What one process emulated. started: seconds since 1970."""

    pid: int
    gfx: str
    started: float
    program: str
    kernels: list[KernelRecord] = field(default_factory=list)

    def to_json(self) -> str:
        """The text of a record file."""
        return json.dumps({"format": FORMAT, **asdict(self)})


def record_path(target: str, pid: int, started: float) -> Path:
    """Where a process writes: in `target`, or beside it if `target` names a .json file.

    The time keeps a later process with the same number from overwriting the record.
    """
    name = f"{pid}-{int(started * 1000):x}{SUFFIX}"
    path = Path(target)
    if path.suffix == SUFFIX and not path.is_dir():
        return path.with_name(f"{path.stem}.{name}")
    return path / f"emulation.{name}"


def write(record: ProcessRecord, path: Path) -> None:
    """Write the record in one step, so that a reader never sees half of it. OSError if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(record.to_json(), encoding="utf-8")
    os.replace(unfinished, path)


def find(target: str) -> list[Path]:
    """The records that processes wrote for `target`, oldest name first."""
    path = Path(target)
    if path.is_dir():
        return sorted(path.glob(f"emulation.*-*{SUFFIX}"))
    own = [path] if path.is_file() else []
    return own + sorted(path.parent.glob(f"{path.stem}.*-*{SUFFIX}"))


def read(path: Path) -> ProcessRecord:
    """One record. RecordError where the file is not one."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise RecordError(f"{path} is not a record of {FORMAT!r}; leave it out of the directory")
    try:
        kernels = [KernelRecord(**kernel) for kernel in content.pop("kernels")]
        return ProcessRecord(**content, kernels=kernels)
    except (TypeError, KeyError) as error:
        raise RecordError(f"{path} is damaged: {error}") from error


def merge(records: Iterable[ProcessRecord]) -> list[KernelRecord]:
    """The kernels of all processes, those with most wave instructions first.

    Kernels of the same name from different files stay apart.
    """
    merged: dict[tuple[str, str], KernelRecord] = {}
    for record in records:
        for kernel in record.kernels:
            key = (kernel.kernel, kernel.source)
            total = merged.setdefault(key, KernelRecord(kernel.kernel, kernel.source))
            total.add(kernel)
    return sorted(merged.values(), key=lambda k: (-k.wave_instructions, k.kernel, k.source))


def hottest_lines(kernels: Iterable[KernelRecord]) -> list[tuple[str, str, int]]:
    """(source line, kernel, wave instructions), the most executed first; "" where there is none."""
    found = [
        (line, kernel.kernel, count) for kernel in kernels for line, count in kernel.lines.items()
    ]
    return sorted(found, key=lambda one: (-one[2], one[0], one[1]))


def classes(kernels: Iterable[KernelRecord]) -> Mapping[str, int]:
    """Wave instructions of all kernels by class, the most frequent first."""
    total: dict[str, int] = {}
    for kernel in kernels:
        for name, count in kernel.instructions.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items(), key=lambda item: -item[1]))
