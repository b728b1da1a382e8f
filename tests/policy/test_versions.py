"""Version ranges without a packaging library."""

from __future__ import annotations

import pytest

from vllm_amdopt.policy.versions import contains, release


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.30.0", True),
        ("0.30", True),
        ("0.32.0+cpu", True),
        ("0.33.5rc1", True),
        ("v0.31.1.dev3+gabc", True),
        ("0.29.9", False),
        ("0.34.0", False),
        ("0.34", False),
        ("1.0", False),
        ("dev", None),
        ("", None),
    ],
)
def test_contains(version: str, expected: bool | None) -> None:
    assert contains(">=0.30,<0.34", version) is expected


def test_release() -> None:
    assert release("0.1.21.post2") == (0, 1, 21)
    assert release("main") is None


def test_range_that_is_none() -> None:
    with pytest.raises(ValueError, match="not a version range"):
        contains("~=0.30", "0.30.0")
