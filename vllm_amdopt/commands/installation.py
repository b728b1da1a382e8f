"""What is installed next to us, read from files: importing torch or vLLM would take seconds.

`importlib.metadata` alone would take longer than all the rest of a command.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import cache_from_source
from pathlib import Path

from vllm_amdopt.detection import directory_names, read

PLUGIN_GROUPS = ("vllm.platform_plugins", "vllm.general_plugins")

_METADATA = re.compile(r"([A-Za-z0-9][\w.]*?)-([^-]+?)(?:-py[\d.]+)?\.(?:dist|egg)-info")
_VLLM_VARIABLE = re.compile(r'"(VLLM_[A-Z0-9_]+)"')


@dataclass(frozen=True)
class TorchBuild:
    """What torch/version.py says; `hip` and `cuda` are None where torch was built without them."""

    version: str
    hip: str | None = None
    cuda: str | None = None


@dataclass(frozen=True)
class Installation:
    """Packages by normalised name ("amd-aiter"), plugins by entry point group.

    `aiter_is_from_amd`: whether the importable package `aiter` is AMD's; None where there is none.
    `vllm_variables`: every VLLM_ variable that the installed vLLM knows; None if it is not found.
    `compiled`: whether vLLM's modules lie there compiled for this Python; None if there is no vLLM.
    """

    packages: Mapping[str, str] = field(default_factory=dict)
    plugins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    torch: TorchBuild | None = None
    aiter_is_from_amd: bool | None = None
    vllm_variables: frozenset[str] | None = None
    compiled: bool | None = None

    def version(self, *names: str) -> str | None:
        """The version of the first of these packages that is installed."""
        return next((self.packages[name] for name in names if name in self.packages), None)


def read_installation(search_path: Iterable[str]) -> Installation:
    """The packages on `search_path`, which is sys.path; the first of two of a name counts."""
    packages: dict[str, str] = {}
    plugins: dict[str, list[str]] = {}
    directories = [Path(entry or ".") for entry in dict.fromkeys(search_path)]
    for directory in directories:
        for name in directory_names(directory):
            found = _METADATA.fullmatch(name)
            if found is None or (package := normalised(found.group(1))) in packages:
                continue
            packages[package] = found.group(2)
            for group, plugin in _entry_points(directory / name / "entry_points.txt"):
                plugins.setdefault(group, []).append(plugin)
    return Installation(
        packages=packages,
        plugins={group: tuple(dict.fromkeys(names)) for group, names in plugins.items()},
        torch=_torch(directories),
        aiter_is_from_amd=_aiter_is_from_amd(directories),
        vllm_variables=_vllm_variables(directories),
        compiled=_compiled(directories),
    )


def normalised(name: str) -> str:
    """As the package index compares names: amd_aiter -> amd-aiter."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _entry_points(path: Path) -> list[tuple[str, str]]:
    """(group, name) of each vLLM plugin that the file registers."""
    group, found = "", []
    for line in read(path).splitlines():
        text = line.strip()
        if text.startswith("["):
            group = text.strip("[] ")
        elif group.startswith("vllm.") and "=" in text:
            found.append((group, text.partition("=")[0].strip()))
    return found


def _torch(directories: Iterable[Path]) -> TorchBuild | None:
    text = _first(directories, "torch/version.py")

    def value(name: str) -> str | None:
        found = re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"\n]+)['\"]", text, re.MULTILINE)
        return found.group(1) if found else None

    version = value("__version__")
    return TorchBuild(version, value("hip"), value("cuda")) if version else None


def _aiter_is_from_amd(directories: Iterable[Path]) -> bool | None:
    """AMD's package compiles its kernels when used, hence `aiter/jit`; PyPI's `aiter` is a tool
    for asynchronous iterators."""
    for directory in directories:
        package = directory / "aiter"
        if package.is_dir():
            return (package / "jit").is_dir()
        if (directory / "aiter.py").is_file():
            return False
    return None


def _vllm_variables(directories: Iterable[Path]) -> frozenset[str] | None:
    """The names in quotes in vllm/envs.py are the keys of its table of variables."""
    return frozenset(_VLLM_VARIABLE.findall(_first(directories, "vllm/envs.py"))) or None


def _compiled(directories: Iterable[Path]) -> bool | None:
    """By a module that every process of vLLM's imports."""
    for directory in directories:
        module = directory / "vllm" / "envs.py"
        if module.is_file():
            return Path(cache_from_source(str(module))).is_file()
    return None


def _first(directories: Iterable[Path], name: str) -> str:
    return next((text for directory in directories if (text := read(directory / name))), "")


@dataclass(frozen=True)
class CacheDirectory:
    """A directory that a server writes compiled kernels or weights to.

    `variable` sets it. `writable` and `free_bytes` are those of the nearest directory that exists.
    """

    variable: str
    path: str
    writable: bool
    free_bytes: int | None


def cache_directories(environment: Mapping[str, str], home: Path) -> tuple[CacheDirectory, ...]:
    """The caches of vLLM (0.30 to 0.32), Triton and the Hugging Face hub, and AITER's if set."""
    general = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    triton_home = Path(environment.get("TRITON_HOME") or home)
    usual: dict[str, Path | None] = {
        "VLLM_CACHE_ROOT": general / "vllm",
        "TRITON_CACHE_DIR": triton_home / ".triton" / "cache",
        "HF_HOME": general / "huggingface",
        "AITER_JIT_DIR": None,
    }
    found = []
    for variable, default in usual.items():
        chosen = environment.get(variable)
        path = Path(chosen.replace("~", str(home), 1)) if chosen else default
        if path is not None:
            found.append(_cache_directory(variable, path))
    return tuple(found)


def _cache_directory(variable: str, path: Path) -> CacheDirectory:
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return CacheDirectory(
        variable=variable,
        path=str(path),
        writable=existing.is_dir() and os.access(existing, os.W_OK | os.X_OK),
        free_bytes=free_bytes(existing),
    )


def free_bytes(path: Path) -> int | None:
    """What an ordinary user may still write to the file system of `path`."""
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize
