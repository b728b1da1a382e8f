"""Run records: what is written is what is read, and what is wrong with a file is said in words."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_amdopt.redaction import HIDDEN
from vllm_amdopt.run_record import (
    SCHEMA_VERSION,
    Arm,
    Conclusion,
    Judgement,
    RecordError,
    Row,
    RunRecord,
    Table,
    as_json,
    find_records,
    load,
    new_record,
    save,
)

LEVEL = {"dataset": "random", "input_len": 1024, "output_len": 128, "concurrency": 16}


def example() -> RunRecord:
    return new_record(
        "serving_ab",
        [
            Arm("stock", {"VLLM_AMDOPT": "0", "HF_TOKEN": "hf_secret"}, ("--api-key", "secret2")),
            Arm("plugin", {"VLLM_AMDOPT": "1"}, ("--api-key", "secret2"), {"hash": "ab"}, ("on",)),
        ],
        rows=(
            Row(0, "stock", LEVEL, "ok", metrics={"output_throughput": 100.0, "completed": 32}),
            Row(0, "plugin", LEVEL, "ok", position=1, metrics={"output_throughput": 110.0}),
            Row(1, "plugin", LEVEL, "error", "BA", 0, 0, "the server died: out of memory"),
        ),
        machine={"gpus": ["none"]},
        workload={"model": "llama"},
        judgement=Judgement("output_throughput@16", ("p99_itl_ms",), 0.02, 0.9, {"p99_itl_ms": 50}),
        commands=("vllm-amdopt bench ab",),
        notes=("One host.",),
        tables=(Table("Extra", ("a", "b"), (("1", "2"),)),),
        conclusion=Conclusion("passed", "It passed."),
        synthetic=True,
    )


def test_written_is_read(tmp_path: Path) -> None:
    record, path = example(), tmp_path / "deep" / "record.json"
    save(record, path)
    assert load(path) == record
    assert json.loads(path.read_text())["schema_version"] == SCHEMA_VERSION
    assert [entry.name for entry in path.parent.iterdir()] == ["record.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_secrets_are_not_in_the_file(tmp_path: Path) -> None:
    save(example(), tmp_path / "record.json")
    text = (tmp_path / "record.json").read_text()
    assert "secret" not in text and HIDDEN in text


def test_difference_of_the_arms() -> None:
    assert example().environment_difference == {
        "HF_TOKEN": {"stock": HIDDEN, "plugin": None},
        "VLLM_AMDOPT": {"stock": "0", "plugin": "1"},
    }
    other = new_record("serving_aa", [Arm("a", {"X": "1"}, ("--n", "2")), Arm("b", {"X": "1"})])
    assert other.environment_difference == {"(serve arguments)": {"a": "--n 2", "b": None}}


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    save(example(), path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"No space left.*is untouched: free some space"):
        save(replace(example(), title="new"), path)
    assert load(path).title == ""
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_what_load_would_refuse_is_not_written(tmp_path: Path) -> None:
    broken = replace(example(), rows=(Row(0, "stock", LEVEL, "ok"),))
    with pytest.raises(RecordError, match="ok and has no metrics"):
        save(broken, tmp_path / "record.json")
    assert not list(tmp_path.iterdir())


def test_every_truncation_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    save(example(), path)
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(RecordError) as caught:
            load(path)
        assert str(path) in str(caught.value)
        said = str(caught.value)
        assert "was truncated" in said or "is empty" in said or "is not JSON" in said, said
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match="it was truncated; run the measurement again"):
        load(path)


def changed(**changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(as_json(example()))) | changes


def with_row(**changes: Any) -> dict[str, Any]:
    content = changed()
    content["rows"][0] |= changes
    return content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param([], "a record is an object", id="list"),
        pytest.param({"a": 1}, "has no schema_version", id="foreign"),
        pytest.param(
            {"request_throughput": 1.0, "completed": 5},
            "one result of `vllm bench serve`",
            id="serve",
        ),
        pytest.param({"results": {}, "config": {}}, "a result of lm-eval", id="lm-eval"),
        pytest.param(changed(schema_version=99), "newer vllm-amdopt.*update", id="newer"),
        pytest.param(changed(schema_version="1"), "has to be a number", id="version-text"),
        pytest.param(changed(schema_version=True), "has to be a number", id="version-bool"),
        pytest.param({"schema_version": 1}, "has no 'kind'; it is incomplete", id="incomplete"),
        pytest.param(changed(kind="cooking"), "one of serving_ab", id="kind"),
        pytest.param(changed(created="yesterday"), "not a time like", id="time"),
        pytest.param(changed(created=5), "not a time like", id="time-number"),
        pytest.param(changed(arms=[]), "one or more", id="no-arms"),
        pytest.param(
            changed(arms=[{"name": "a"}, {"name": "a"}]), "name of its own", id="same-arms"
        ),
        pytest.param(changed(arms=[{"name": " "}]), "arm 1 has no name", id="arm-name"),
        pytest.param(
            changed(arms=[{"name": "stock", "environment": {"A": 1}}]), "no text", id="variable"
        ),
        pytest.param(changed(rows={}), "rows has to be a list", id="rows"),
        pytest.param(changed(rows=[5]), "row 1 has to be an object", id="row"),
        pytest.param(changed(rows=[{"block": 0}]), "row 1 has no 'arm'", id="row-field"),
        pytest.param(with_row(block=-1), "row 1, block is -1", id="block"),
        pytest.param(with_row(arm="other"), "which the record has not", id="row-arm"),
        pytest.param(with_row(status="fine"), "ok, unsupported, error, tainted", id="status"),
        pytest.param(with_row(metrics={}), "has no metrics", id="ok-without-numbers"),
        pytest.param(
            with_row(metrics={"a": "fast"}), "'fast', and has to be a number", id="metric"
        ),
        pytest.param(
            with_row(metrics={"a": True}), "True, and has to be a number", id="metric-bool"
        ),
        pytest.param(with_row(status="error", reason=" "), "gives no reason", id="reason"),
        pytest.param(with_row(block=1, arm="plugin"), "same cell", id="twice"),
        pytest.param(changed(machine=[]), "machine has to be an object", id="machine"),
        pytest.param(changed(commands=[1]), "list of texts", id="commands"),
        pytest.param(changed(commands="vllm"), "commands has to be a list", id="command-text"),
        pytest.param(changed(judgement={"margin": 5}), "judgement, margin is 5", id="margin"),
        pytest.param(changed(judgement={"confidence": "a"}), "has to be a number", id="confidence"),
        pytest.param(changed(judgement={"slo": {"p99": 0}}), "not above 0", id="slo"),
        pytest.param(changed(tables=[{"title": "a"}]), "needs a title, a head", id="table"),
        pytest.param(
            changed(tables=[{"title": "a", "head": ["x"], "rows": [["1", "2"]]}]),
            "another length",
            id="ragged",
        ),
        pytest.param(changed(conclusion={"outcome": "great"}), "outcome of passed", id="outcome"),
        pytest.param(changed(synthetic="no"), "true or false", id="synthetic"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=said) as caught:
        load(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe\x00", "no text file"),
        (b"MODEL,TTFT\n1,2\n", r"is not JSON \(line 1, column 1"),
        (b'{"schema_version": 1, "rows": NaN}', "NaN"),
        (b"[" * 100_000, "no run record"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, written: bytes, said: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(written)
    with pytest.raises(RecordError, match=said):
        load(path)


def test_a_number_too_large_for_a_float_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(changed()).replace("100.0", "1e999"))
    with pytest.raises(RecordError, match="output_throughput is inf: leave out"):
        load(path)


def test_a_field_of_a_later_release_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(with_row(mood="good") | {"weather": "fine"}))
    assert load(path) == example_of(path)


def example_of(path: Path) -> RunRecord:
    """The example with the time that the file holds."""
    return replace(example(), created=json.loads(path.read_text())["created"])


def test_records_are_found(tmp_path: Path) -> None:
    for name in ("record.json", "deep/record.json", "deep/startup.record.json", "other.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = [str(path.relative_to(tmp_path)) for path in find_records(tmp_path)]
    assert found == ["deep/record.json", "deep/startup.record.json", "record.json"]
    assert find_records(tmp_path / "other.json") == [tmp_path / "other.json"]
    with pytest.raises(RecordError, match="does not exist"):
        find_records(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="holds no run record"):
        find_records(tmp_path / "empty")


def test_a_directory_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read: Is a directory"):
        load(tmp_path)
