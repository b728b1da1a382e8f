"""An emulated device that keeps a record of its launches and writes it when the process ends."""

from __future__ import annotations

import logging
import os
import sys
import time
from multiprocessing.util import Finalize
from typing import Any

from .launch import Device
from .report import KernelRecord, ProcessRecord, record_path, write

WRITE_EVERY = 10.0
"""Seconds between two writes while launches go on: what a killed process loses at most."""

_logger = logging.getLogger(__name__)


class RecordingDevice(Device):
    """A Device that counts per source line too. target: a directory, or a name ending in .json.

    The record is written at exit, also in processes that multiprocessing started, and every
    WRITE_EVERY seconds before. That it cannot be written is said once and disturbs nobody.
    """

    def __init__(self, arch: str = "gfx942", *, target: str, **options: Any) -> None:
        super().__init__(arch, **{"stats": "lines", **options})
        self.target = target
        self._said = False
        self._begin()

    def _begin(self) -> None:
        self._record = ProcessRecord(os.getpid(), self.arch, time.time(), " ".join(sys.argv))
        self._kernels: dict[tuple[str, str], KernelRecord] = {}
        self._path = record_path(self.target, self._record.pid, self._record.started)
        self._written = time.monotonic()
        # Unlike atexit, this runs in a forked process of multiprocessing as well.
        Finalize(None, self.write, exitpriority=0)

    def note(self, launch: dict[str, Any]) -> None:
        """Remember the counts of a launch."""
        super().note(launch)
        if os.getpid() != self._record.pid:
            self._begin()  # forked: what went before is the parent's
        key = (launch["kernel"], launch.get("source", ""))
        kernel = self._kernels.get(key)
        if kernel is None:
            kernel = self._kernels[key] = KernelRecord(*key)
            self._record.kernels.append(kernel)
        kernel.add(
            KernelRecord(
                *key,
                launches=1,
                workgroups=launch["workgroups"],
                wave_instructions=launch["wave_instrs"],
                seconds=launch["seconds"],
                instructions=launch["instrs"],
                bytes=launch["bytes"],
                lines=launch.get("lines", {}),
            )
        )
        if time.monotonic() - self._written > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Write what there is up to now."""
        self._written = time.monotonic()
        if os.getpid() != self._record.pid or not self._kernels:
            return
        try:
            write(self._record, self._path)
        except OSError as error:
            if not self._said:
                self._said = True
                _logger.warning(
                    "vllm-amdopt: the emulation record %s cannot be written: %s",
                    self._path,
                    error.strerror,
                )
