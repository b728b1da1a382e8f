"""How the set-up program speaks: numbered steps with elapsed time, and refusals as sentences."""

from __future__ import annotations

import time


class SetupError(Exception):
    """Why the environment cannot be made, in a sentence that says what to do."""


class Progress:
    """Prints numbered steps with the elapsed time, and a sign of life during long ones."""

    def __init__(self, steps: int) -> None:
        self._start = time.monotonic()
        self._steps = steps
        self._step = 0

    def step(self, text: str) -> None:
        self._step += 1
        self._print(f"{self._step}/{self._steps} {text}")

    def note(self, text: str) -> None:
        self._print(f"    {text}")

    def _print(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:6.1f} s] {text}", flush=True)
