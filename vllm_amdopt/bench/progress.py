"""Says how far a run is: a line that is rewritten on a terminal, one line an event elsewhere."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TextIO

Style = Literal["auto", "terminal", "plain", "json", "none"]

LAUNCH_SECONDS = 90.0
RUN_SECONDS = 30.0
"""What is assumed before anything was measured."""


@dataclass
class Timing:
    """What launches and runs took so far; monotonic seconds."""

    launches: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)

    def estimate(self, launches: int, runs: int) -> float:
        """Seconds for that many more of each."""
        launch = statistics.median(self.launches) if self.launches else LAUNCH_SECONDS
        run = statistics.median(self.runs) if self.runs else RUN_SECONDS
        return launches * launch + runs * run


def clock(seconds: float) -> str:
    """`1:02:03` or `02:03`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes:02d}:{left:02d}"


class Reporter:
    """Events as they happen. `note` stays on the screen, `status` is replaced by the next one."""

    def __init__(
        self, stream: TextIO, style: Style = "auto", now: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        if style == "auto":
            style = "terminal" if stream.isatty() else "plain"
        self._style = style
        self._now = now
        self._begin = now()
        self._width = 0

    def event(self, kind: str, sentence: str, **fields: Any) -> None:
        """Something that happened, worth keeping."""
        if self._style == "none":
            return
        if self._style == "json":
            elapsed = round(self._now() - self._begin, 3)
            self._write(
                json.dumps({"event": kind, "seconds": elapsed, "says": sentence, **fields}) + "\n"
            )
            return
        self._clear()
        self._write(f"[{clock(self._now() - self._begin)}] {sentence}\n")

    def status(self, sentence: str) -> None:
        """What is going on; only a terminal shows it."""
        if self._style != "terminal":
            return
        self._clear()
        text = f"[{clock(self._now() - self._begin)}] {sentence}"[:118]
        self._width = len(text)
        self._write(text)

    def _clear(self) -> None:
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (BrokenPipeError, ValueError):  # whoever read it has gone; the run goes on
            self._style = "none"
