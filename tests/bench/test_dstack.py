"""The dstack task and fleet, against the JSON schemas that dstack makes of its own models.

dstack itself is no part of the environment; the files also passed dstack 0.22.5's
`parse_apply_configuration` when they were written.
"""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from vllm_amdopt.cli import _parser
from vllm_amdopt.commands.bench_options import plan_of

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = json.loads(Path(__file__).with_name("dstack_schema.json").read_text())
FILES = sorted((ROOT / "benchmarks" / "dstack").glob("*.yml"))


def content(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "benchmarks" / "dstack" / name).read_text())
    return read


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_is_what_dstack_takes(path: Path) -> None:
    read = content(path.name)
    jsonschema.validate(read, SCHEMAS[read["type"]])


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        pytest.param("bench.dstack.yml", "resourcez", {}, id="unknown-key"),
        pytest.param("bench.dstack.yml", "volumes", 7, id="wrong-type"),
        pytest.param("bench.dstack.yml", "creation_policy", "sometimes", id="wrong-word"),
        pytest.param("fleet.dstack.yml", "placement", "anywhere", id="placement"),
    ],
)
def test_schema_would_notice(name: str, key: str, value: object) -> None:
    read = copy.deepcopy(content(name))
    read[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(read, SCHEMAS[read["type"]])


def test_task_runs_commands_that_exist() -> None:
    task, fleet = content("bench.dstack.yml"), content("fleet.dstack.yml")
    assert task["fleets"] == [fleet["name"]]
    ours = [shlex.split(line)[1:] for line in task["commands"] if line.startswith("vllm-amdopt")]
    parsed = [_parser(words[:1]).parse_args(words) for words in ours]
    assert [options.command for options in parsed] == ["doctor", "bench", "bench", "report"]
    options = parsed[2]
    assert plan_of(options).preset == "paiton-8b" and options.resume
    # The locks of a container are those of the machine.
    directory = next(line.split("=")[1] for line in task["env"] if "LOCK_DIR" in line)
    assert f"{directory}:{directory}" in task["volumes"]
