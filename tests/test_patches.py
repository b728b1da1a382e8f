"""The patches themselves: each has a reason, fits, repairs what it says, and can be taken back.

The installed vLLM is always looked at. `make test-patches` adds the sources of every supported
release, in folders below the one that VLLM_SOURCES names.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.integration.forked_programs import ForkedPrograms
from vllm_amdopt import cli
from vllm_amdopt.patching.changes import changes_of, make_changes
from vllm_amdopt.patching.installation import (
    Finding,
    Installation,
    applied_numbers,
    examine,
    find_installation,
)
from vllm_amdopt.patching.manifest import Patch, load_manifest
from vllm_amdopt.patching.overlay import make_overlay
from vllm_amdopt.patching.page import readme_page
from vllm_amdopt.policy.features import VLLM_RANGE
from vllm_amdopt.policy.serving_rules import ENTRIES
from vllm_amdopt.policy.versions import contains

ROOT = Path(__file__).parents[1]
MANIFEST = load_manifest(ROOT / "patches")
RELEASES = ("0.30.0", "0.31.0", "0.32.0", "0.33.0")
"""What every patch has to say something about."""

SOURCES = os.environ.get("VLLM_SOURCES")
ROOTS = [None, *(sorted(Path(SOURCES).iterdir()) if SOURCES else ())]


def each_patch(**options: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "patch", MANIFEST.patches, ids=[patch.number for patch in MANIFEST.patches], **options
    )


@pytest.fixture(params=ROOTS, ids=lambda root: "installed" if root is None else root.name)
def original(request: pytest.FixtureRequest) -> Installation:
    """A vLLM as it was released."""
    return find_installation(request.param)


@pytest.fixture
def copy(original: Installation, tmp_path: Path) -> Installation:
    """As much of it as the patches change, to be changed."""
    for patch in MANIFEST.patches:
        questions = (patch.probe.path, patch.remove_when.path)
        for path in (*patch.targets, *questions, "vllm/__init__.py"):
            if (original.root / path).is_file():
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(original.root / path, tmp_path / path)
    return Installation(tmp_path, original.version)


def definitions(source: bytes) -> set[str]:
    """Names of functions and classes, and those of their parameters."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.FunctionDef):
            found |= {f"{node.name}({argument.arg})" for argument in node.args.args}
    return found


# --- the manifest --------------------------------------------------------------------------------


def test_manifest_and_files_agree() -> None:
    files = {str(path.relative_to(MANIFEST.folder)) for path in MANIFEST.folder.glob("*/*.patch")}
    assert files == {release.file for patch in MANIFEST.patches for release in patch.releases}
    numbers = [patch.number for patch in MANIFEST.patches]
    assert numbers == [f"{number:04d}" for number in range(1, len(numbers) + 1)]
    assert all(
        release.file.startswith(f"vllm/{patch.name}")
        for patch in MANIFEST.patches
        for release in patch.releases
    )


@each_patch()
def test_every_release_is_spoken_for(patch: Patch) -> None:
    fitting = [version for release in patch.releases for version in release.vllm]
    excepted = [version for entry in patch.not_for for version in entry.vllm]
    assert sorted([*fitting, *excepted]) == list(RELEASES)
    assert all(contains(patch.applies_to, version) for version in RELEASES)
    assert all(contains(VLLM_RANGE, version) for version in RELEASES)
    for text in (patch.title, patch.why, patch.without, patch.used_by, patch.upstream, patch.ends):
        assert text.strip() == text != ""
    assert len({patch.adds for patch in MANIFEST.patches}) == len(MANIFEST.patches)


@each_patch()
def test_a_diff_begins_with_what_upstream_would_read(patch: Patch) -> None:
    for release in patch.releases:
        text = (MANIFEST.folder / release.file).read_text()
        assert text.startswith("Subject: ")
        message = text.partition("\n--- a/")[0]
        assert max(map(len, message.splitlines())) <= 88
        assert message.count("\n\n") >= 1, "a subject, and why"


def test_the_page_is_current() -> None:
    written = (MANIFEST.folder / "README.md").read_text()
    assert written == readme_page(MANIFEST), "run `vllm-amdopt docs --write`"


def test_what_needs_a_patch_names_one_that_is_there() -> None:
    needed = {
        condition.number
        for entry in ENTRIES
        for condition in entry.requires
        if hasattr(condition, "number")
    }
    assert needed == {"0004", "0005", "0006"}
    for patch in MANIFEST.patches:
        named = {entry.name for entry in ENTRIES if entry.name in patch.used_by}
        uses = {
            entry.name
            for entry in ENTRIES
            for condition in entry.requires
            if getattr(condition, "number", None) == patch.number
        }
        assert uses <= named, f"patch {patch.number}: used_by does not name {uses - named}"


# --- on vLLM's files -----------------------------------------------------------------------------


def test_the_releases_are_the_ones_that_the_folder_says(original: Installation) -> None:
    assert original.version is not None
    assert original.version.split("+")[0] in RELEASES
    if SOURCES and original.root.parent == Path(SOURCES):
        assert original.version.split("+")[0] == original.root.name


@each_patch()
def test_it_fits_is_seen_and_can_be_taken_back(patch: Patch, copy: Installation) -> None:
    before = {path: copy.content(path) for path in patch.targets}
    finding = examine(patch, copy)
    excepted = {version for entry in patch.not_for for version in entry.vllm}
    if str(copy.version).split("+")[0] in excepted:
        assert finding.state == "not for it"
        return
    assert finding.state == "fits", finding.sentence
    assert not copy.holds(patch.probe)
    make_changes(copy, changes_of(MANIFEST, [finding], copy, reverse=False))
    applied = examine(patch, copy)
    assert applied.state == "applied"
    assert copy.holds(patch.probe)
    assert applied_numbers(MANIFEST, copy) == {patch.number}
    for path, content in before.items():
        after = copy.content(path)
        assert content is not None and after is not None and content != after
        assert not definitions(content) - definitions(after), "nothing is taken away"
        assert max(map(len, after.decode().splitlines())) <= max(
            88, *map(len, content.decode().splitlines())
        ), "vLLM's line length"
    make_changes(copy, changes_of(MANIFEST, [applied], copy, reverse=True))
    assert {path: copy.content(path) for path in patch.targets} == before


@each_patch()
def test_its_reason_is_still_there(patch: Patch, copy: Installation) -> None:
    """Fails when vLLM no longer needs the patch: then it goes, or is not for that release."""
    if examine(patch, copy).state != "not for it":
        assert not copy.holds(patch.remove_when), f"remove it: {patch.ends}"


SUCCESSORS = {
    "0001": (
        "vllm/model_executor/kernels/linear/__init__.py",
        "\n",
        '\nX = kernel_type == "unquantized"\n',
    ),
    "0002": (
        "vllm/model_executor/kernels/linear/__init__.py",
        '    kernel_type: str = "mp",\n) -> None',
        '    kernel_type: str = "mp",\n    prepend: bool = False,\n) -> None',
    ),
    "0003": ("vllm/platforms/rocm.py", "\n_GCN_ARCH = _get_gcn_arch()", "\n_GCN_ARCH = None"),
    "0004": (
        "vllm/compilation/passes/pass_manager.py",
        "                else:\n                    self.passes += [AllReduce",
        "                elif True:\n                    self.passes += [AllReduce",
    ),
    "0005": (
        "vllm/v1/kv_offload/cpu/spec.py",
        "current_platform.is_cuda_alike() and not current_platform.is_rocm()",
        "current_platform.is_cuda_alike()",
    ),
    "0006": (
        "vllm/v1/worker/startup_plan.py",
        '"rank": rank,',
        '"rank": rank, "memory": config.gpu_memory_utilization,',
    ),
}
"""For each patch what a vLLM might look like that does not need it: file, text, text instead."""


@each_patch()
def test_a_vllm_that_does_not_need_it_is_noticed(patch: Patch, copy: Installation) -> None:
    if examine(patch, copy).state == "not for it":
        return
    path, old, new = SUCCESSORS[patch.number]
    content = (copy.root / path).read_text()
    assert old in content
    (copy.root / path).write_text(content.replace(old, new, 1))
    assert copy.holds(patch.remove_when)
    if path in patch.targets:
        finding = examine(patch, copy)
        assert (finding.state, finding.release) == ("not needed", None)
        assert patch.ends in finding.sentence


def test_all_at_once(copy: Installation) -> None:
    def findings(state: str) -> list[Finding]:
        return [f for f in (examine(p, copy) for p in MANIFEST.patches) if f.state == state]

    before = {p: copy.content(p) for patch in MANIFEST.patches for p in patch.targets}
    fitting = findings("fits")
    make_changes(copy, changes_of(MANIFEST, fitting, copy, reverse=False))
    assert [f.patch for f in findings("applied")] == [f.patch for f in fitting]
    make_changes(copy, changes_of(MANIFEST, findings("applied"), copy, reverse=True))
    assert {path: copy.content(path) for path in before} == before


# --- what vLLM does without and with them --------------------------------------------------------


def answers(programs: ForkedPrograms, *folder: str) -> dict[str, Any]:
    """What patched_vllm_program says with the installed vLLM, or with the overlay in `folder`."""
    output = programs.run(
        "tests.patched_vllm_program",
        *folder,
        VLLM_PLUGINS="",
        VLLM_LOGGING_LEVEL="WARNING",
        OMP_NUM_THREADS="1",
    )
    return dict(json.loads(output.splitlines()[-1]))


@pytest.fixture(scope="module")
def programs() -> Iterator[ForkedPrograms]:
    with ForkedPrograms() as running:
        yield running


@pytest.fixture(scope="module")
def stock(programs: ForkedPrograms) -> dict[str, Any]:
    return answers(programs)


@pytest.fixture(scope="module")
def patched(programs: ForkedPrograms, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """From an overlay: so that an overlay is known to work with the real vLLM, too."""
    installation = find_installation()
    fitting = [f for f in (examine(p, installation) for p in MANIFEST.patches) if f.release]
    folder = tmp_path_factory.mktemp("overlay") / "vllm"
    changes = changes_of(MANIFEST, fitting, installation, reverse=False)
    make_overlay(installation, changes, folder, [f.patch.name for f in fitting])
    found = answers(programs, str(folder))
    assert Path(found["vllm"]).parents[1] == folder
    return found


def test_0002_a_kernel_can_be_put_first(stock: dict[str, Any], patched: dict[str, Any]) -> None:
    assert "unexpected keyword argument 'priority'" in stock["linear_kernels"]
    assert patched["linear_kernels"] == {
        "last was last": True,
        "first": 0,
        "second of fp8_block": 1,
        "unknown type": "ValueError: Unrecognized kernel type: fp9",
    }


def test_0003_the_rocm_platform_is_imported_without_a_gpu(
    stock: dict[str, Any], patched: dict[str, Any]
) -> None:
    """Whoever then asks for a device is still refused."""
    refusal = "AssertionError: Torch not compiled with CUDA enabled"
    assert stock["rocm_module"] == refusal
    assert patched["rocm_module"] == {"arch": "", "gfx942": False, "capability": refusal}


def test_0004_a_fusion_that_is_not_there_is_left_out(
    stock: dict[str, Any], patched: dict[str, Any]
) -> None:
    assert stock["all_reduce_fusion"] == "NameError: name 'AllReduceFusionPass' is not defined"
    assert patched["all_reduce_fusion"]["fusions"] == []
    assert len(patched["all_reduce_fusion"]["said"]) == 1


def test_0005_ranks_share_one_copy_on_request(
    stock: dict[str, Any], patched: dict[str, Any]
) -> None:
    """Four ranks, so that one copy holds four times the blocks."""
    copies = {"chunks": 64, "one copy": None}
    shared = {"chunks": 256, "one copy": True}
    if applies_to_installed("0005"):
        assert stock["offload"] == dict.fromkeys(stock["offload"], copies)
        assert patched["offload"] == {
            "asked for": shared,
            "not asked for": copies,
            "not replicated": copies,
        }
    else:
        assert stock["offload"]["not asked for"] == shared, "vLLM 0.30 shares by itself"
        assert patched["offload"] == stock["offload"]


def applies_to_installed(number: str) -> bool:
    (patch,) = MANIFEST.select([number])
    return examine(patch, find_installation()).state == "fits"


def test_0006_a_changed_server_has_another_fingerprint(
    stock: dict[str, Any], patched: dict[str, Any]
) -> None:
    """And one that changed in nothing that matters has the same, or no plan was ever found."""
    same = {"again": True, "without effect": True}
    assert stock["startup_plan"] == {**same, "memory": True, "variable": True, "hip": True}
    assert patched["startup_plan"] == {
        **same, "memory": False, "variable": False, "hip": False, "aiter": False,
    }  # fmt: skip


# --- the plugin and the command ------------------------------------------------------------------


def test_the_plugin_sees_which_patches_are_there(
    copy: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_amdopt.integration.compat import patches

    (patch,) = MANIFEST.select(["0006"])
    make_changes(copy, changes_of(MANIFEST, [examine(patch, copy)], copy, reverse=False))
    monkeypatch.setattr(patches, "find_installation", lambda: copy)
    assert patches.applied_patches.__wrapped__() == {"0006"}


def test_a_broken_manifest_costs_the_patches_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vllm_amdopt.integration.compat import patches

    said: list[str] = []
    monkeypatch.setattr(patches, "load_manifest", lambda: load_manifest(tmp_path))
    monkeypatch.setattr(
        patches, "logger", SimpleNamespace(warning=lambda text, *a: said.append(text % a))
    )
    assert patches.applied_patches.__wrapped__() == frozenset()
    assert len(said) == 1 and "cannot be read" in said[0]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["patches", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command(capsys: pytest.CaptureFixture[str], copy: Installation) -> None:
    root = ("--root", str(copy.root))
    before = {p: copy.content(p) for patch in MANIFEST.patches for p in patch.targets}
    code, out, _ = run(capsys, "list", *root)
    assert code == 0 and all(patch.title in out for patch in MANIFEST.patches)
    code, out, _ = run(capsys, "apply", "6", "0004", "--dry-run", *root)
    assert code == 0 and out.count("would be applied") == 2
    assert {path: copy.content(path) for path in before} == before
    code, out, _ = run(capsys, "apply", "6", "0004", *root)
    assert code == 0 and "0004  applied: vllm/compilation/passes/pass_manager.py" in out
    code, out, _ = run(capsys, "apply", "6", *root)
    assert code == 0 and "0006  left alone: applied" in out
    code, out, _ = run(capsys, "check", *root)
    assert code == 0 and "0006  applied\n" in out and "0001  not applied" in out
    code, out, _ = run(capsys, "list", "--json", *root)
    states = {entry["name"][:4]: entry["state"] for entry in json.loads(out)["patches"]}
    assert (states["0004"], states["0001"]) == ("applied", "fits")
    code, out, _ = run(capsys, "reverse", "--all", *root)
    assert code == 0 and "0006  reversed" in out
    assert {path: copy.content(path) for path in before} == before


def test_nothing_is_changed_where_one_of_them_is_refused(
    capsys: pytest.CaptureFixture[str], copy: Installation
) -> None:
    edited = copy.root / "vllm/v1/worker/startup_plan.py"
    edited.write_text(edited.read_text() + "# mine\n")
    before = {p: copy.content(p) for patch in MANIFEST.patches for p in patch.targets}
    root = ("--root", str(copy.root))
    code, _, err = run(capsys, "apply", "4", "6", *root)
    assert code == 2 and "patch 0006, refused: vllm/v1/worker/startup_plan.py (sha256" in err
    assert "nothing was changed" in err
    assert {path: copy.content(path) for path in before} == before
    assert run(capsys, "check", "6", *root)[0] == 1
    code, out, _ = run(capsys, "apply", "--all", *root)
    assert code == 0 and "0006  left alone: refused" in out and "0004  applied" in out


def test_an_interrupted_run_is_put_back_first(
    capsys: pytest.CaptureFixture[str], copy: Installation
) -> None:
    root = ("--root", str(copy.root))
    (patch,) = MANIFEST.select(["0004"])
    before = copy.content(patch.targets[0])

    def step(name: str) -> None:
        if name == "commit":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_changes(copy, changes_of(MANIFEST, [examine(patch, copy)], copy, reverse=False), step)
    assert copy.content(patch.targets[0]) != before
    code, _, err = run(capsys, "list", *root)
    assert code == 2 and "an earlier run was interrupted" in err
    code, out, _ = run(capsys, "reverse", "--all", "--dry-run", *root)
    assert code == 0 and out.startswith("would first put back")
    code, out, _ = run(capsys, "reverse", "--all", *root)
    assert code == 0 and out.startswith("put back what an interrupted run left")
    assert copy.content(patch.targets[0]) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param((), "required: ACTION", id="no action"),
        pytest.param(("apply",), "name the patches to apply, or give --all", id="no patch"),
        pytest.param(("reverse", "1", "--all"), "or give --all, not both", id="both"),
        pytest.param(("apply", "77"), "there is no patch '77'", id="unknown"),
        pytest.param(("list", "--root", "/nowhere"), "holds no package vllm", id="no vLLM"),
    ],
)
def test_what_cannot_be_done_is_said(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2 and sentence in err and err.count("\n") == 1


def test_the_plugin_uses_the_hook_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 0001 nothing is replaced; a layer that is refused is left to the next in line."""
    import torch
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
