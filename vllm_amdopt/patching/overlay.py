"""A vLLM that cannot be written, patched nonetheless: a folder of links to put on PYTHONPATH.

Everything in it links to the installed vLLM but the patched files and the folders above them. It
is not a copy: it goes with the installation that it was made from.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from vllm_amdopt.patching.changes import Change
from vllm_amdopt.patching.installation import OVERLAY_MARKER, Installation
from vllm_amdopt.patching.manifest import PatchError


def make_overlay(
    installation: Installation,
    changes: Sequence[Change],
    folder: Path,
    patches: Iterable[str],
) -> None:
    """Make `folder`, which must not exist or be empty, an overlay with these changes.

    PatchError, with nothing left behind, where that cannot be done.
    """
    if installation.overlay:
        raise PatchError(
            f"the vLLM in {installation.root} is an overlay itself: take it off PYTHONPATH first"
        )
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PatchError(f"{folder} exists and is not empty: name a folder that is new")
    source = installation.root.resolve()
    if source == folder or source in folder.parents:
        raise PatchError(f"{folder} is inside the installation: name a folder elsewhere")
    draft: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        _link(source / "vllm", draft / "vllm", PurePosixPath("vllm"), _tree(changes))
        # Wheels may keep libraries beside the package, found relative to it.
        for libraries in source.glob("vllm*.libs"):
            (draft / libraries.name).symlink_to(libraries)
        marker = {"source": str(source), "vllm": installation.version, "patches": list(patches)}
        (draft / OVERLAY_MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        draft.chmod(0o755)
        os.replace(draft, folder)
    except OSError as error:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
        raise PatchError(f"{folder} cannot be made: {error.strerror or error}") from error


def _tree(changes: Sequence[Change]) -> Mapping[PurePosixPath, bytes | None]:
    """Files with their contents, and the folders above them with None."""
    tree: dict[PurePosixPath, bytes | None] = {}
    for change in changes:
        path = PurePosixPath(change.path)
        tree[path] = change.after
        tree.update(dict.fromkeys(path.parents, None))
    return tree


def _link(
    source: Path, target: Path, path: PurePosixPath, tree: Mapping[PurePosixPath, bytes | None]
) -> None:
    target.mkdir()
    for entry in sorted(source.iterdir()):
        inner = path / entry.name
        if entry.name == "__pycache__":
            continue
        if inner not in tree:
            (target / entry.name).symlink_to(entry)
            continue
        content = tree[inner]
        if content is None:
            _link(entry, target / entry.name, inner, tree)
        else:
            (target / entry.name).write_bytes(content)
