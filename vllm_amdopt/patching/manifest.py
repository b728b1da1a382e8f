"""patches/manifest.toml as records. Reads files of this project only, never a vLLM."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_amdopt.patching.unified_diff import DiffError, FileDiff, read_diff


class PatchError(ValueError):
    """A patch that cannot be applied, reversed or read; the message is one sentence."""


@dataclass(frozen=True)
class Text:
    """A question on the text of one file of vLLM: whether a regular expression is found in it.

    With `absent` the question is whether it is not found.
    """

    path: str
    pattern: str
    absent: bool = False

    def holds(self, content: str) -> bool:
        """The answer for the file's content."""
        return (re.search(self.pattern, content) is None) is self.absent


@dataclass(frozen=True)
class Release:
    """Releases of vLLM whose files are equal, and the diff that is made for them.

    `digests`: file -> (sha256 before, sha256 after).
    """

    vllm: tuple[str, ...]
    file: str
    digests: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class NotFor:
    """Releases of vLLM that the patch is not for, and why."""

    vllm: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Patch:
    """One patch: a hook that vLLM lacks, or one thing repaired.

    `name` is its file's stem, `number` the digits in front. `adds` is what the policy knows it by.
    `probe` tells a vLLM that has it from one that has not. `remove_when` is asked of a vLLM without
    the patch: where it holds, the patch has no reason to exist any more, said by `ends`.
    """

    name: str
    title: str
    applies_to: str
    adds: str
    why: str
    without: str
    used_by: str
    upstream: str
    probe: Text
    remove_when: Text
    ends: str
    releases: tuple[Release, ...]
    not_for: tuple[NotFor, ...]

    @property
    def number(self) -> str:
        """ "0003", by which people call it."""
        return self.name[:4]

    @property
    def targets(self) -> tuple[str, ...]:
        """The files that it changes."""
        return tuple(dict.fromkeys(path for release in self.releases for path in release.digests))


@dataclass(frozen=True)
class NotNeeded:
    """A patch that was considered and not made, and what speaks against it."""

    what: str
    why: str
    evidence: str


@dataclass(frozen=True)
class Manifest:
    """All patches, and the folder in which their files are."""

    folder: Path
    patches: tuple[Patch, ...]
    not_needed: tuple[NotNeeded, ...]

    def diffs(self, release: Release) -> tuple[FileDiff, ...]:
        """What a release's diff does. PatchError if its file is missing or cannot be read."""
        path = self.folder / release.file
        try:
            return read_diff(path.read_bytes())
        except OSError as error:
            raise PatchError(f"{path} cannot be read: {error.strerror}") from error
        except DiffError as error:
            raise PatchError(f"{path}: {error}") from error

    def select(self, wanted: list[str]) -> tuple[Patch, ...]:
        """The patches called by number ("5", "0005") or name, in the manifest's order."""
        chosen: dict[str, Patch] = {}
        for text in wanted:
            found = [
                patch
                for patch in self.patches
                if text == patch.name or (text.isdigit() and text.zfill(4) == patch.number)
            ]
            if not found:
                numbers = ", ".join(patch.number for patch in self.patches)
                raise PatchError(f"there is no patch {text!r}: there are {numbers}")
            chosen[found[0].name] = found[0]
        return tuple(patch for patch in self.patches if patch.name in chosen)


def patches_folder() -> Path:
    """Where the manifest is: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "patches"
    return inside if (inside / "manifest.toml").is_file() else package.parent / "patches"


def load_manifest(folder: Path | None = None) -> Manifest:
    """The manifest in `folder`, by default this project's. PatchError where it is broken."""
    folder = patches_folder() if folder is None else folder
    path = folder / "manifest.toml"
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PatchError(
            f"{path} cannot be read ({error.strerror}): install vllm-amdopt from its wheel or a "
            "checkout"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise PatchError(f"{path} is not TOML: {error}") from error
    try:
        patches = tuple(_patch(entry) for entry in record["patch"])
        not_needed = tuple(NotNeeded(**entry) for entry in record.get("not_needed", ()))
    except (KeyError, TypeError, ValueError) as error:
        raise PatchError(f"{path} is broken: {type(error).__name__}: {error}") from error
    owners: dict[str, str] = {}
    for patch in patches:
        for target in patch.targets:
            other = owners.setdefault(target, patch.number)
            if other != patch.number:
                raise PatchError(f"{path}: {target} is changed by {other} and by {patch.number}")
    return Manifest(folder, patches, not_needed)


def _patch(entry: Mapping[str, Any]) -> Patch:
    fields = dict(entry)
    remove_when = dict(fields.pop("remove_when"))
    return Patch(
        probe=Text(**fields.pop("probe")),
        ends=remove_when.pop("words"),
        remove_when=Text(**remove_when),
        releases=tuple(
            Release(
                tuple(release["vllm"]),
                release["file"],
                {path: (before, after) for path, (before, after) in release["digests"].items()},
            )
            for release in fields.pop("release")
        ),
        not_for=tuple(
            NotFor(tuple(exception["vllm"]), exception["reason"])
            for exception in fields.pop("not_for", ())
        ),
        **fields,
    )
