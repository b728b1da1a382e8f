"""Every patch has a manifest entry, applies to the installed vLLM, and adds just its hook."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

PATCHES = Path(__file__).parents[1] / "patches"
MANIFEST = tomllib.loads((PATCHES / "manifest.toml").read_text())["patch"]
FIELDS = {
    "file", "vllm", "adds", "target", "probe", "why", "without", "upstream", "remove_when",
}  # fmt: skip


def functions(source: str) -> set[str]:
    return {n.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)}


def patched(entry: dict[str, str], folder: Path, *options: str) -> str:
    """Apply the patch in `folder`, which holds the target; the target's new text."""
    subprocess.run(
        ["git", "apply", *options, str(PATCHES / entry["file"])],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return (folder / entry["target"]).read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with copies of what the patches change, as the installed vLLM has it."""
    specification = importlib.util.find_spec("vllm")
    assert specification is not None and specification.origin is not None
    site_packages = Path(specification.origin).parents[1]
    for entry in MANIFEST:
        copy = tmp_path / entry["target"]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(site_packages / entry["target"], copy)
    return tmp_path


def test_manifest_and_files_agree() -> None:
    assert all(set(entry) == FIELDS for entry in MANIFEST)
    files = {str(path.relative_to(PATCHES)) for path in PATCHES.glob("*/*.patch")}
    assert files == {entry["file"] for entry in MANIFEST}
    readme = (PATCHES / "README.md").read_text()
    assert all(entry["file"] in readme and entry["probe"] in readme for entry in MANIFEST)


@pytest.mark.parametrize("entry", MANIFEST, ids=lambda entry: Path(entry["file"]).stem)
def test_applies_adds_its_hook_and_can_be_taken_back(entry: dict[str, str], folder: Path) -> None:
    before = (folder / entry["target"]).read_text()
    after = patched(entry, folder)
    assert functions(after) - functions(before) == {entry["probe"]}
    assert not functions(before) - functions(after)
    assert patched(entry, folder, "-R") == before


def test_the_plugin_uses_the_hook_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the patch nothing is replaced; a layer that is refused is left to the next in line."""
    from vllm.model_executor.layers import utils

    from vllm_amdopt.integration import linear_layers, self_test
    from vllm_amdopt.integration.compat import unquantized_gemm

    choosers: list[Any] = []
    monkeypatch.setattr(utils, "register_cpu_unquantized_gemm", choosers.append, raising=False)
    monkeypatch.setattr(self_test, "check_gemm", lambda dtype: None)
    monkeypatch.setattr(
        linear_layers, "layer_refusal", lambda weight: "no" if weight.dim() != 2 else None
    )
    stock = utils.dispatch_cpu_unquantized_gemm
    unquantized_gemm._install_cpu()
    assert utils.dispatch_cpu_unquantized_gemm is stock
    (choose,) = choosers
    assert choose(SimpleNamespace(weight=torch.zeros(2, 2))) is not None
    assert choose(SimpleNamespace(weight=torch.zeros(2, 2, 2))) is None
    assert choose(SimpleNamespace(weight=torch.zeros(2, 2, device="meta"))) is None
