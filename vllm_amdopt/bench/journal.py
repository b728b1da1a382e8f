"""What a run has done so far: one JSON line for each event, appended and flushed to the disk.

It is what `--resume` reads. A run that was killed may leave half a last line, which counts as not
written; anything else that is not an event is refused, because what it hides is not known.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = "journal.jsonl"


class JournalError(ValueError):
    """The journal cannot be read or does not belong to this run; a sentence for the user."""


@dataclass
class Progress:
    """What a journal says is done: the rows of the finished blocks, and what was thrown away."""

    plan_digest: str | None = None
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    blocks: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    launches: list[dict[str, Any]] = field(default_factory=list)
    discarded: list[dict[str, Any]] = field(default_factory=list)
    pre_block_done: bool = False
    block_seconds: list[float] = field(default_factory=list)
    truncated: bool = False


class Journal:
    """Appends events; a full disk shows as the OSError that it is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, **fields}, sort_keys=True) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            data = line.encode()
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> Progress:
        """Everything so far. Cuts half a last line off the file, so that appending goes on."""
        progress = Progress()
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return progress
        whole, _, rest = data.rpartition(b"\n")
        if rest:
            progress.truncated = True
            os.truncate(self.path, len(data) - len(rest))
        for number, line in enumerate(whole.splitlines(), start=1):
            self._take(progress, line, number)
        return progress

    def _take(self, progress: Progress, line: bytes, number: int) -> None:
        try:
            event = json.loads(line)
            kind = event["event"]
            if kind == "plan":
                progress.plan_digest = event["digest"]
                progress.fingerprint = event["fingerprint"]
            elif kind == "pre_block":
                progress.pre_block_done = True
            elif kind == "launch":
                progress.launches.append(event["launch"])
            elif kind == "block":
                progress.blocks[int(event["block"])] = list(event["rows"])
                progress.block_seconds.append(float(event["seconds"]))
            elif kind == "discarded":
                progress.discarded.append(event["what"])
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(
                f"line {number} of {self.path} is not an event of a run ({error}); move the "
                "directory away, or give another one with --out"
            ) from None


def rows_in_order(progress: Progress) -> list[dict[str, Any]]:
    """The rows of all finished blocks, by block."""
    return [row for block in sorted(progress.blocks) for row in progress.blocks[block]]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Sequence[str]:
    """`gpu.driver: '6.1' was '6.0'` for everything in which two fingerprints differ."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += differences(before, now, f"{prefix}{key}.")
        elif before != now:
            found.append(f"{prefix}{key}: {now!r} was {before!r}")
    return found
