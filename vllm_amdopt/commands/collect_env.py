"""`vllm-amdopt collect-env`: what a bug report about an AMD GPU needs and `vllm collect-env` lacks.

Reads files and asks amdsmi; imports neither torch nor vLLM and starts no GPU. Secrets are left out.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm_amdopt import __version__
from vllm_amdopt.commands.doctor import diagnose
from vllm_amdopt.commands.facts import Facts, gather
from vllm_amdopt.detection import amdsmi_session, attempt, directory_names, read
from vllm_amdopt.hardware import GIB
from vllm_amdopt.policy.switches import SwitchError, read_switches
from vllm_amdopt.redaction import redacted_environment

Section = Mapping[str, Any]
Report = Mapping[str, Section]

PREFIXES = (
    "AITER_",
    "AMD_",
    "ATOM_",
    "CUDA_VISIBLE_DEVICES",
    "GPU_",
    "HIP_",
    "HIPBLASLT_",
    "HSA_",
    "HSAKMT_",
    "LMCACHE_",
    "MIOPEN_",
    "MORI_",
    "NCCL_",
    "OMP_NUM_THREADS",
    "PYTORCH_",
    "RCCL_",
    "ROCBLAS_",
    "ROCM_",
    "ROCR_",
    "SAFETENSORS_",
    "TENSILE_",
    "TORCH",
    "TRITON_",
    "UCX_",
    "VLLM_",
)
"""Beginnings of the variables that are shown; GPU_ holds GPU_MAX_HW_QUEUES, VLLM_ holds ours."""

_PACKAGES = re.compile(
    r"vllm.*|torch.*|pytorch.*|triton.*|amd.*|aiter|atom|rocm.*|rccl.*|hip.*|flash-attn|flydsl"
    r"|mori.*|lmcache|transformers|tokenizers|safetensors|fastsafetensors|compressed-tensors"
    r"|numpy|ray|xgrammar|setuptools"
)

_LIBRARIES = (
    "libamdhip64",
    "libhsa-runtime64",
    "librccl",
    "libhipblaslt",
    "librocblas",
    "libMIOpen",
    "libamd_smi",
)

_PROGRAM_TIMEOUT = 5.0  # seconds


def collect(
    environment: Mapping[str, str],
    *,
    root: Path = Path("/"),
    search_path: Iterable[str] | None = None,
    use_amdsmi: bool = True,
) -> Report:
    """The whole report by section; every section is there, an empty one means nothing was found."""
    facts = gather(environment, root=root, search_path=search_path, use_amdsmi=use_amdsmi)
    firmware, topology = _asked_of_amdsmi() if use_amdsmi and facts.gpus else ({}, {})
    diagnosis = diagnose(facts)
    return {
        "vllm-amdopt": {"version": __version__, **_switches(environment)},
        "system": _system(facts, root),
        "rocm": _rocm(facts, environment, root),
        "gpus": {str(index): asdict(gpu) for index, gpu in enumerate(facts.gpus)},
        "firmware": firmware,
        "topology": topology,
        "packages": {
            name: version
            for name, version in sorted(facts.installation.packages.items())
            if _PACKAGES.fullmatch(name)
        },
        "plugins": {
            group: ", ".join(names) for group, names in sorted(facts.installation.plugins.items())
        },
        "environment": shown_environment(environment),
        "doctor": {
            name: f"{finding.severity}: {finding.sentence}"
            for name, finding in diagnosis.findings.items()
            if finding.severity != "fine"
        },
    }


def shown_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that matter, without secrets: their names stay, their values do not."""
    return redacted_environment(
        {name: value for name, value in environment.items() if name.startswith(PREFIXES)}
    )


def _switches(environment: Mapping[str, str]) -> dict[str, str]:
    """Whether the plugin is asked for, and each switch that somebody has moved."""
    try:
        activation = read_switches(environment)
    except SwitchError as error:
        return {"switches": str(error)}
    asked = {None: "on an AMD GPU", True: "yes", False: "no"}[activation.active]
    moved = {
        name: f"{mode} ({activation.sources[name]})"
        for name, mode in activation.modes.items()
        if mode != "auto"
    }
    return {
        "active": asked,
        "strict": str(activation.strict),
        "cpu engine": activation.engine,
    } | moved


def _system(facts: Facts, root: Path) -> dict[str, str]:
    names = os.uname()
    system = {
        "os": _value(read(root / "etc/os-release"), r'^PRETTY_NAME="?([^"\n]+)'),
        "kernel": f"{names.sysname} {names.release} {names.machine}",
        "libc": attempt(os.confstr, "CS_GNU_LIBC_VERSION") or "",
        "python": ".".join(map(str, facts.python)),
        "cpu": _value(read(root / "proc/cpuinfo"), r"^model name\s*:\s*(.+)$"),
        "cpus of this process": str(len(os.sched_getaffinity(0))),
        "host memory": _gib(facts.hardware.host_memory_bytes),
        "shared memory": _gib(facts.shared_memory_bytes),
        "numa balancing": {True: "on", False: "off", None: ""}[facts.numa_balancing],
        "container": _container(root),
    }
    build = facts.installation.torch
    if build is not None:
        system["torch"] = f"{build.version}, HIP {build.hip}, CUDA {build.cuda}"
    return {name: text for name, text in system.items() if text}


def _rocm(facts: Facts, environment: Mapping[str, str], root: Path) -> dict[str, str]:
    found = {
        "machine": facts.hardware.description,
        "on the PCI bus": ", ".join(facts.on_bus),
        "rocm": facts.rocm or "",
        "driver": facts.driver or "",
        **{name: access for name, access in facts.devices.items() if access != "absent"},
        **_libraries(root / "opt/rocm/lib"),
    }
    if facts.expects_amd:
        found["amd-smi"] = _program(["amd-smi", "version"], environment)
    return {name: text for name, text in found.items() if text}


def _libraries(directory: Path) -> dict[str, str]:
    """The versions in the names of ROCm's libraries: librccl.so.1.0.60402 -> 1.0.60402."""
    names = directory_names(directory)
    found = {}
    for library in _LIBRARIES:
        prefix = f"{library}.so."
        versions = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        if versions:
            found[library] = max(versions, key=len)
    return found


def _asked_of_amdsmi() -> tuple[Section, Section]:
    """Firmware of the first GPU, and the kind of each link between GPUs ("0-1": "XGMI, 1 hop")."""
    with amdsmi_session() as module:
        handles = None if module is None else attempt(module.amdsmi_get_processor_handles)
        if not handles:
            return {}, {}
        answer = attempt(lambda: module.amdsmi_get_fw_info(handles[0])["fw_list"]) or []
        firmware = {
            re.sub(r".*FW_ID_", "", str(getattr(entry["fw_name"], "name", entry["fw_name"]))): str(
                entry["fw_version"]
            )
            for entry in answer
            if isinstance(entry, dict) and {"fw_name", "fw_version"} <= set(entry)
        }
        topology = {}
        for first, source in enumerate(handles):
            for second, target in enumerate(handles[first + 1 :], start=first + 1):
                link = attempt(lambda a=source, b=target: module.amdsmi_topo_get_link_type(a, b))
                if isinstance(link, dict):
                    topology[f"{first}-{second}"] = _link(module, link)
        return firmware, topology


def _link(module: Any, link: Mapping[str, Any]) -> str:
    kind = attempt(lambda: module.AmdSmiLinkType(link["type"]).name) or str(link.get("type"))
    return f"{re.sub(r'.*LINK_TYPE_', '', kind)}, {link.get('hops')} hops"


def _program(command: list[str], environment: Mapping[str, str]) -> str:
    """The first line that a program prints; "" where it is not found, fails or hangs."""
    path = shutil.which(command[0], path=environment.get("PATH", ""))
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *command[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROGRAM_TIMEOUT,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else ""


def _container(root: Path) -> str:
    if (root / ".dockerenv").exists():
        return "docker"
    return "podman" if (root / "run/.containerenv").exists() else ""


def _value(text: str, pattern: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _gib(amount: int | None) -> str:
    return "" if amount is None else f"{amount / GIB:.1f} GiB"


def render(report: Report) -> str:
    """For people: sections with one fact a line; empty sections are left out."""
    blocks = []
    for title, section in report.items():
        if not section:
            continue
        width = max(len(name) for name in section)
        lines = [f"{name:<{width}}  {_text(value)}" for name, value in section.items()]
        blocks.append("\n".join([f"[{title}]", *lines]))
    return "\n\n".join(blocks)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {known}" for name, known in value.items() if known is not None)
    return str(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--json", action="store_true", help="the report as JSON")


def run(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Print the report on this machine; always 0."""
    report = collect(environment)
    print(json.dumps(report, indent=2) if options.json else render(report))
    return 0
