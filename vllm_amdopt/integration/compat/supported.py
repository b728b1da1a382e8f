"""Which vLLM versions this plugin was written for and tested with."""

from __future__ import annotations

import re

LOWEST = (0, 30)
ABOVE_HIGHEST = (0, 34)
TESTED = ("0.30.0", "0.31.0", "0.32.0")
"""The versions whose real CPU wheels `make test-compat` runs."""


def version_warning(version: str | None) -> str | None:
    """One sentence when `version` lies outside the supported range, else None."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    if match is None:
        return (
            f"the version of vLLM ({version or 'unknown'}) cannot be read; "
            "features whose place in vLLM is missing stay off"
        )
    if LOWEST <= (int(match[1]), int(match[2])) < ABOVE_HIGHEST:
        return None
    low, high = ".".join(map(str, LOWEST)), ".".join(map(str, ABOVE_HIGHEST))
    return (
        f"vLLM {version} is outside the supported range >={low},<{high}; features whose place in "
        "vLLM is missing stay off, install a supported version to have them all"
    )
