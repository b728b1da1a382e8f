"""The report of `collect-env` on made-up machines: what it shows, and what it must not."""

from __future__ import annotations

import argparse
import json
import sys
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.machines import Machine
from vllm_amdopt.commands import collect_env
from vllm_amdopt.commands.collect_env import collect, render, shown_environment


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made_up = Machine(tmp_path)
    made_up.eight_mi300x()
    return made_up


def report(machine: Machine, use_amdsmi: bool = False, **environment: str) -> Any:
    return collect(environment, root=machine.root, search_path=[], use_amdsmi=use_amdsmi)


def test_sections_of_a_machine_with_gpus(machine: Machine) -> None:
    machine.write(machine.root / "etc/os-release", 'PRETTY_NAME="Ubuntu 24.04"\nNAME=x\n')
    machine.write(machine.root / "proc/cpuinfo", "model name\t: AMD EPYC 9575F\n" * 2)
    machine.write(machine.places.rocm / ".info/version", "7.2.2-1\n")
    machine.write(machine.places.amdgpu_version, "6.16.6\n")
    for name in ("librccl.so", "librccl.so.1", "librccl.so.1.0.70202", "libhipblaslt.so.1"):
        machine.write(machine.places.rocm / "lib" / name, "")
    found = report(machine, VLLM_AMDOPT_STRICT="1")
    assert found["system"]["os"] == "Ubuntu 24.04"
    assert found["system"]["cpu"] == "AMD EPYC 9575F"
    assert found["rocm"]["machine"] == "AMD Instinct MI300X (gfx942)"
    assert (found["rocm"]["rocm"], found["rocm"]["driver"]) == ("7.2.2-1", "6.16.6")
    assert found["rocm"]["librccl"] == "1.0.70202"
    assert found["rocm"]["libhipblaslt"] == "1"
    assert len(found["gpus"]) == 8
    assert found["gpus"]["0"]["compute_partition"] == "SPX"
    assert found["gpus"]["0"]["mec_firmware"] == 177
    assert found["vllm-amdopt"]["strict"] == "True"
    assert found["doctor"]["vllm"].startswith("wrong: ")


def test_empty_machine_has_every_section_and_no_lies(tmp_path: Path) -> None:
    found = report(Machine(tmp_path))
    assert list(found) == list(report(Machine(tmp_path)))
    assert found["gpus"] == found["firmware"] == found["topology"] == found["packages"] == {}
    assert found["rocm"] == {"machine": "CPU without a GPU"}
    assert "[gpus]" not in render(found)


@pytest.mark.parametrize(
    "name",
    [
        "HIP_VISIBLE_DEVICES",
        "HSA_NO_SCRATCH_RECLAIM",
        "ROCR_VISIBLE_DEVICES",
        "ROCM_PATH",
        "AITER_JIT_DIR",
        "RCCL_MSCCL_ENABLE",
        "NCCL_MIN_NCHANNELS",
        "TRITON_CACHE_DIR",
        "GPU_MAX_HW_QUEUES",
        "MIOPEN_FIND_MODE",
        "VLLM_ROCM_USE_AITER",
        "VLLM_AMDOPT_STRICT",
        "TORCH_BLAS_PREFER_HIPBLASLT",
        "PYTORCH_ALLOC_CONF",
    ],
)
def test_variables_that_are_shown(name: str) -> None:
    assert shown_environment({name: "1"}) == {name: "1"}


def test_variables_of_no_interest_are_not_shown() -> None:
    assert (
        shown_environment({"HOME": "/root", "HF_TOKEN": "hf_x", "AWS_SECRET_ACCESS_KEY": "x"}) == {}
    )


@pytest.mark.parametrize(
    "name",
    ["VLLM_API_KEY", "VLLM_token", "NCCL_SECRET", "LMCACHE_PASSWORD", "TORCH_PASSWD", "VLLM_AUTH"],
)
def test_secrets_keep_their_name_only(name: str) -> None:
    assert shown_environment({name: "hunter2"}) == {name: "(set, not shown)"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("http://me:hunter2@host:8000/x", "***@host:8000/x"),
        ("redis://me:hun/ter2@host", "***@host"),
        ("https://hunter2@host", "***@host"),
        ("me:hunter2@host", "***@host"),
        ("a=1 http://me:hunter2@host", "a=1 ***@host"),
        ("http://host:8000/x", "http://host:8000/x"),
        ("expandable_segments:True", "expandable_segments:True"),
    ],
)
def test_users_and_passwords_in_addresses(value: str, shown: str) -> None:
    assert shown_environment({"LMCACHE_REMOTE_URL": value}) == {"LMCACHE_REMOTE_URL": shown}


def test_no_secret_reaches_the_printed_report(machine: Machine) -> None:
    found = report(
        machine, VLLM_API_KEY="hunter2", NCCL_X="http://u:hunter2@h", HF_TOKEN="hunter2", PATH=""
    )
    assert "hunter2" not in render(found)
    assert "hunter2" not in json.dumps(found)


def test_switches_that_were_moved(machine: Machine) -> None:
    ours = report(machine, VLLM_AMDOPT="1", VLLM_AMDOPT_AITER="off")["vllm-amdopt"]
    assert ours["active"] == "yes"
    assert ours["aiter"] == "off (VLLM_AMDOPT_AITER=off)"
    assert "mla" not in ours, "what nobody touched is not listed"
    assert "VLLM_AMDOPT_X" in report(machine, VLLM_AMDOPT_X="1")["vllm-amdopt"]["switches"]


# --- amdsmi and programs -------------------------------------------------------------------------


class LinkType(IntEnum):
    AMDSMI_LINK_TYPE_XGMI = 2


def fake_amdsmi(link: object) -> Any:
    module: Any = ModuleType("amdsmi")
    module.amdsmi_init = module.amdsmi_shut_down = lambda: None
    module.amdsmi_get_processor_handles = lambda: [0, 1, 2]
    module.amdsmi_get_gpu_asic_info = lambda _: {"target_graphics_version": "gfx942"}
    module.amdsmi_get_fw_info = lambda _: {
        "fw_list": [{"fw_name": "AMDSMI_FW_ID_RLC", "fw_version": "64"}, "odd"]
    }
    module.amdsmi_topo_get_link_type = lambda *_: link
    module.AmdSmiLinkType = LinkType
    return module


@pytest.mark.parametrize(
    ("link", "topology"),
    [
        (
            {"hops": 1, "type": 2},
            {"0-1": "XGMI, 1 hops", "0-2": "XGMI, 1 hops", "1-2": "XGMI, 1 hops"},
        ),
        (
            {"hops": 1, "type": 9},
            {"0-1": "9, 1 hops", "0-2": "9, 1 hops", "1-2": "9, 1 hops"},
        ),
        ("N/A", {}),
    ],
)
def test_topology_and_firmware_through_amdsmi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: object, topology: dict[str, str]
) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", fake_amdsmi(link))
    found = report(Machine(tmp_path), use_amdsmi=True)
    assert found["firmware"] == {"RLC": "64"}
    assert found["topology"] == topology


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        ("#!/bin/sh\necho AMDSMI Tool: 26.2\necho more\n", "AMDSMI Tool: 26.2"),
        ("#!/bin/sh\necho half; exit 3\n", None),
        ("#!/bin/sh\nexec sleep 60\n", None),
        ("not a program", None),
    ],
)
def test_program_is_asked_with_patience_but_not_for_ever(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, script: str, shown: str | None
) -> None:
    monkeypatch.setattr(collect_env, "_PROGRAM_TIMEOUT", 0.5)
    program = machine.root / "bin" / "amd-smi"
    machine.write(program, script)
    program.chmod(0o755)
    found = report(machine, PATH=f"{program.parent}:/usr/bin:/bin")
    assert found["rocm"].get("amd-smi") == shown


# --- the command ---------------------------------------------------------------------------------


def test_here_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    collect_env.add_arguments(parser)
    before = set(sys.modules)
    assert collect_env.run(parser.parse_args([]), {"VLLM_PLUGINS": "amdopt"}) == 0
    text = capsys.readouterr().out
    assert "[vllm-amdopt]" in text and "VLLM_PLUGINS  amdopt" in text
    assert collect_env.run(parser.parse_args(["--json"]), {"VLLM_PLUGINS": "amdopt"}) == 0
    assert json.loads(capsys.readouterr().out)["environment"] == {"VLLM_PLUGINS": "amdopt"}
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not new & {"torch", "vllm", "triton"}
