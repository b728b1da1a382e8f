"""Python's garbage collector looks away while a process imports vLLM.

What is imported stays, and looking through it again and again takes seconds (docs/startup_cost.md).
vLLM asks for its platform in the middle of its imports and calls its general plugins when they are
over, so that is where this begins and ends, in every process.
"""

from __future__ import annotations

import gc

THRESHOLDS = (100_000, 50, 100)
"""New objects until the youngest are looked at, and after how many of those looks the older ones
are; Python's own are 700, 10 and 10. Not switched off: an import may make garbage, too."""

_before: tuple[int, int, int] | None = None


def begin() -> None:
    """Raise the thresholds, unless somebody has done so or has switched the collector off."""
    global _before
    thresholds = gc.get_threshold()
    if _before is None and gc.isenabled() and 0 < thresholds[0] < THRESHOLDS[0]:
        _before = thresholds
        gc.set_threshold(*THRESHOLDS)


def end() -> None:
    """Put them back, unless somebody has set others since."""
    global _before
    if _before is not None and gc.get_threshold() == THRESHOLDS:
        gc.set_threshold(*_before)
    _before = None
