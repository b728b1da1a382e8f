"""What holds for every test: the order (fast first) and an environment without our switches."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

DIRECTORY_ORDER = (
    "",
    "policy",
    "environment",
    "benchmarks",
    "models",
    "kernels",
    "ops",
    "emulator",
)
"""Directories whose tests start no server, cheap ones first; what is not listed comes before
the last, and `integration`, which starts servers, is the last."""

# A developer's shell may have them set; each test says itself what is switched.
for _name in [name for name in os.environ if name.startswith("VLLM_AMDOPT")]:
    del os.environ[_name]

# Idle OpenMP threads spin before they sleep, and small models leave them idle all the time: the
# second thread of a test would take the core of the test beside it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_paths = [str(TESTS / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(_paths)
gc.set_threshold(700, 10, 10)  # Python's own: a worker, which has started so too, lives long

# What Triton 3.9 does with a warning unless told otherwise, and 3.10 will not: multiply and add
# become one instruction. vllm_amdopt.codegen compiles the kernels so.
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"


def position(path: Path) -> int:
    """Where the tests of a file stand in a run."""
    top = path.relative_to(TESTS).parts[0] if path.parent != TESTS else ""
    if top == "integration":
        return len(DIRECTORY_ORDER) + 1
    return DIRECTORY_ORDER.index(top) if top in DIRECTORY_ORDER else len(DIRECTORY_ORDER)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: position(item.path))
