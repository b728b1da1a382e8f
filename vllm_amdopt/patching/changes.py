"""Change files of an installation all together or not at all, also where the program is killed.

The order: new contents and copies of the old ones are written beside the files, then a journal
that names them, then each file is replaced by a rename. While the journal is there the change is
unfinished, and the next run puts the old contents back.
"""

import fcntl
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vllm_amdopt.patching.installation import Finding, Installation, digest
from vllm_amdopt.patching.manifest import Manifest, PatchError
from vllm_amdopt.patching.unified_diff import DiffError

JOURNAL = ".vllm-amdopt-patching.json"
"""In the folder of the package vllm."""
_NEW, _OLD = ".vllm-amdopt-new", ".vllm-amdopt-old"


@dataclass(frozen=True)
class Change:
    """One file's new content; `path` is relative to the installation's root."""

    path: str
    before: bytes
    after: bytes


def changes_of(
    manifest: Manifest, findings: Sequence[Finding], installation: Installation, *, reverse: bool
) -> list[Change]:
    """What applying (or reversing) patches does to the files, checked against their digests."""
    changes: list[Change] = []
    for finding in findings:
        assert finding.release is not None, "only what fits or is applied can be changed"
        for diff in manifest.diffs(finding.release):
            content = installation.content(diff.path)
            assert content is not None, "a file with a known digest is there"
            try:
                after = (diff.reversed if reverse else diff).apply(content)
            except DiffError as error:
                raise PatchError(f"{finding.release.file}: {error}") from error
            expected = finding.release.digests[diff.path][0 if reverse else 1]
            if digest(after) != expected:
                raise PatchError(
                    f"{finding.release.file} makes of {diff.path} what the manifest does not "
                    "expect: this vllm-amdopt is damaged, reinstall it"
                )
            changes.append(Change(diff.path, content, after))
    return changes


def make_changes(
    installation: Installation,
    changes: Sequence[Change],
    step: Callable[[str], None] = lambda name: None,
) -> None:
    """Make all changes or none. `step` is told what comes next: tests interrupt there.

    PatchError, with everything as it was, where a file cannot be written.
    """
    _refuse_links(installation, changes)
    with _alone(installation):
        recover(installation)
        try:
            _prepare(installation, changes, step)
            step("replace")
            for change in changes:
                path = installation.root / change.path
                os.replace(_beside(path, _NEW), path)
                step("replaced")
                _remove_compiled(path)
            _sync([installation.package, *_folders(installation, changes)])
        except OSError as error:
            _put_back(installation)
            _tidy(installation, [change.path for change in changes])
            raise PatchError(_unwritable(installation, error)) from error
        step("commit")
        (installation.package / JOURNAL).unlink()
        step("tidy")
        _tidy(installation, [change.path for change in changes])


def recover(installation: Installation) -> bool:
    """Put back what an interrupted run left half done; whether there was any."""
    if not (installation.package / JOURNAL).is_file():
        return False
    try:
        _put_back(installation)
    except OSError as error:
        raise PatchError(_unwritable(installation, error)) from error
    return True


def interrupted(installation: Installation) -> bool:
    """Whether an earlier run was interrupted and nothing has put the files back yet."""
    return (installation.package / JOURNAL).is_file()


def _prepare(
    installation: Installation, changes: Sequence[Change], step: Callable[[str], None]
) -> None:
    for change in changes:
        path = installation.root / change.path
        step("prepare")
        mode = stat.S_IMODE(path.stat().st_mode)
        _write(_beside(path, _OLD), change.before, mode)
        _write(_beside(path, _NEW), change.after, mode)
    record = {"files": [{"path": c.path, "before": digest(c.before)} for c in changes]}
    journal = installation.package / JOURNAL
    draft = _beside(journal, _NEW)
    step("journal")
    _write(draft, json.dumps(record).encode(), 0o644)
    os.replace(draft, journal)
    _sync([installation.package])


def _put_back(installation: Installation) -> None:
    """The files as the journal says that they were; without a journal they never changed."""
    journal = installation.package / JOURNAL
    if not journal.is_file():
        return
    paths = []
    for entry in json.loads(journal.read_bytes())["files"]:
        path = installation.root / entry["path"]
        paths.append(entry["path"])
        if digest(path.read_bytes()) != entry["before"]:
            os.replace(_beside(path, _OLD), path)
            _remove_compiled(path)
    journal.unlink()
    _tidy(installation, paths)


def _tidy(installation: Installation, paths: Sequence[str]) -> None:
    _beside(installation.package / JOURNAL, _NEW).unlink(missing_ok=True)
    for path in paths:
        for ending in (_OLD, _NEW):
            _beside(installation.root / path, ending).unlink(missing_ok=True)


def _remove_compiled(path: Path) -> None:
    """What Python compiled from the file: images often hold some that is never checked again."""
    pattern = re.compile(rf"{re.escape(path.stem)}\.[^.]+(\.opt-\d)?\.pyc")
    folder = path.parent / "__pycache__"
    for compiled in folder.glob("*.pyc") if folder.is_dir() else ():
        if pattern.fullmatch(compiled.name):
            compiled.unlink()


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}{ending}")


def _write(path: Path, content: bytes, mode: int) -> None:
    with open(path, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())


def _folders(installation: Installation, changes: Sequence[Change]) -> list[Path]:
    return sorted({(installation.root / change.path).parent for change in changes})


def _sync(folders: Sequence[Path]) -> None:
    """Renames reach the disk before what follows them does."""
    for folder in folders:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _alone(installation: Installation) -> Iterator[None]:
    """No second run on the same installation meanwhile."""
    descriptor = os.open(installation.package, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PatchError(
                f"another run of `vllm-amdopt patches` is changing {installation.package}: wait "
                "for it"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _refuse_links(installation: Installation, changes: Sequence[Change]) -> None:
    if installation.overlay:
        raise PatchError(
            f"{installation.root} is an overlay: delete it and make one with the patches that you "
            "want (`vllm-amdopt patches apply ... --overlay DIR`, without it on PYTHONPATH)"
        )
    for change in changes:
        folder = installation.root
        for name in Path(change.path).parts[:-1]:
            folder = folder / name
            if folder.is_symlink():
                raise PatchError(
                    f"{folder} is a link: what it points to is not this installation's alone, so "
                    "nothing is changed through it; use --overlay DIR"
                )


def _unwritable(installation: Installation, error: OSError) -> str:
    where = error.filename or installation.package
    return (
        f"{where} cannot be written ({error.strerror}), so nothing was changed: patch while the "
        "image is built, or use --overlay DIR"
    )
