"""An emulated device that keeps a record of its launches, on disk as well."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from multiprocessing.util import Finalize
from typing import Any

from .launch import Device
from .report import KernelRecord, ProcessRecord, record_path, write

WRITE_EVERY = 1.0
"""Seconds between two writes while launches go on: what a killed process loses at most. vLLM kills
worker processes that are not gone when the main one ends."""

_logger = logging.getLogger(__name__)


class RecordingDevice(Device):
    """A Device that counts per source line too. target: a directory, or a name ending in .json.

    The record is written every WRITE_EVERY seconds in which there were launches, and at exit, also
    in processes that multiprocessing started. That it cannot be written is said once and disturbs
    nobody.
    """

    def __init__(self, arch: str = "gfx942", *, target: str, **options: Any) -> None:
        super().__init__(arch, **{"stats": "lines", **options})
        self.target = target
        self._said = False
        self._begin()

    def _begin(self) -> None:
        """Start the record of this process."""
        self._record = ProcessRecord(os.getpid(), self.arch, time.time(), " ".join(sys.argv))
        self._kernels: dict[tuple[str, str], KernelRecord] = {}
        self._path = record_path(self.target, self._record.pid, self._record.started)
        # A new one after a fork: a thread that is not here any more may have held the old one.
        self._lock = threading.Lock()
        self._noted = threading.Event()
        threading.Thread(target=self._keep_written, args=(self._noted,), daemon=True).start()
        # Unlike atexit, this runs in a forked process of multiprocessing as well.
        Finalize(None, self.write, exitpriority=0)

    def _keep_written(self, noted: threading.Event) -> None:
        while noted.wait():
            noted.clear()
            self.write()
            time.sleep(WRITE_EVERY)

    def note(self, launch: dict[str, Any]) -> None:
        """Remember the counts of a launch."""
        super().note(launch)
        if os.getpid() != self._record.pid:
            self._begin()  # forked: what went before is the parent's
        key = (launch["kernel"], launch.get("source", ""))
        counts = KernelRecord(
            *key,
            launches=1,
            workgroups=launch["workgroups"],
            wave_instructions=launch["wave_instrs"],
            seconds=launch["seconds"],
            instructions=launch["instrs"],
            bytes=launch["bytes"],
            lines=launch.get("lines", {}),
        )
        with self._lock:
            if key not in self._kernels:
                self._kernels[key] = KernelRecord(*key)
                self._record.kernels.append(self._kernels[key])
            self._kernels[key].add(counts)
        self._noted.set()

    def write(self) -> None:
        """Write what there is up to now."""
        if os.getpid() != self._record.pid or not self._kernels:
            return
        try:
            with self._lock:
                write(self._record, self._path)
        except OSError as error:
            if not self._said:
                self._said = True
                _logger.warning(
                    "vllm-amdopt: the emulation record %s cannot be written: %s",
                    self._path,
                    error.strerror,
                )
