"""Our reading of a config.json agrees with vLLM's own, for every config that ships."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vllm_amdopt.policy.model_fixtures import fixture_names

ROOT = Path(__file__).parents[2]
LEFT_TO_THE_CLASS = {"gemma-3-27b": {"context"}}
"""Fields that the file leaves to transformers' class; the facts from the file do not know them."""


@cache
def answers() -> Any:
    process = subprocess.run(
        [sys.executable, "-m", "tests.integration.facts_by_vllm"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", fixture_names())
def test_facts_from_the_file_are_vllms(name: str) -> None:
    left = LEFT_TO_THE_CLASS.get(name, set())
    found, expected = answers()[name]["file"], answers()[name]["vllm"]
    assert {key: found[key] for key in found if key not in left} == {
        key: expected[key] for key in expected if key not in left
    }


@pytest.mark.parametrize("name", fixture_names())
def test_facts_inside_a_server_are_vllms(name: str) -> None:
    assert answers()[name]["server"] == answers()[name]["vllm"]
