"""What holds for every test of the harness: locks of its own, for tests run beside one another."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU a run locks the whole machine, which is right for users and not for tests."""
    monkeypatch.setenv("VLLM_AMDOPT_LOCK_DIR", str(tmp_path / "locks"))
