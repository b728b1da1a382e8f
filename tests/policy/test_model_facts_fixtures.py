"""The shipped configs: each has a source and can be read, and an unknown name gets a hint."""

from __future__ import annotations

import json

import pytest

from tests.policy.situations import CONFIGS
from vllm_amdopt.policy.model_facts import ModelConfigError, model_facts
from vllm_amdopt.policy.model_fixtures import fixture, fixture_names, fixture_source


def test_names_are_those_of_the_files() -> None:
    assert len(fixture_names()) >= 30
    assert set(fixture_names()) == {path.stem for path in CONFIGS.glob("*.json")}


@pytest.mark.parametrize("name", fixture_names())
def test_config_has_a_source_and_can_be_read(name: str) -> None:
    source = fixture_source(name)
    assert source.origin and "not named" not in source.origin
    assert "/" in source.hf_model, "an organisation and a model"
    assert source.note, "what to know about the copy"
    assert model_facts(fixture(name)).summary


@pytest.mark.parametrize("name", fixture_names())
def test_file_says_whether_it_is_whole(name: str) -> None:
    record = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    assert set(record) == {"source", "config"}
    assert isinstance(record["source"]["verbatim"], bool)
    assert fixture_source(name).verbatim is record["source"]["verbatim"]


def test_every_file_is_in_the_list_of_what_is_missing() -> None:
    lines = (CONFIGS / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|") for line in lines if line.startswith("| ")][1:]
    listed = {row[1].strip(): row[3].strip() == "verbatim" for row in rows}
    assert listed == {name: fixture_source(name).verbatim for name in fixture_names()}


def test_sentence_says_where_it_is_from_and_that_it_is_partial() -> None:
    assert fixture_source("qwen3-8b").sentence == (
        "config of Qwen/Qwen3-8B, from PyPI aiconfigurator_core==0.12.0"
    )
    partial = fixture_source("qwen3-vl-235b-a22b").sentence
    assert "; partial: policy/model_configs/qwen3-vl-235b-a22b.json says what" in partial


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        pytest.param(
            "deepseek-v3.1", "did you mean deepseek-v3.2 or deepseek-v3 or ", id="another version"
        ),
        pytest.param("Qwen/Qwen3-8B", "did you mean qwen3-8b or ", id="the name on the hub"),
        pytest.param("zzz", "the names are deepseek-r1, ", id="nothing near"),
        pytest.param("", "the names are ", id="empty"),
        pytest.param("../README", "ships with vllm-amdopt", id="a path"),
    ],
)
def test_unknown_name_gets_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        fixture(name)
    assert hint in str(caught.value)
    with pytest.raises(ModelConfigError):
        fixture_source(name)
