"""The diagnosis as a whole, and the command on made-up machines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.commands.situations import GOOD, INSTALLED, NO_GPU, environment, installed
from tests.machines import Machine
from vllm_amdopt.commands import doctor, facts
from vllm_amdopt.commands.facts import Facts, gather
from vllm_amdopt.detection import Gpu
from vllm_amdopt.hardware import GIB, Hardware


def test_nothing_to_mend_on_a_good_machine() -> None:
    diagnosis = doctor.diagnose(GOOD)
    assert {name: one.severity for name, one in diagnosis.findings.items()} == {
        check.name: "fine" for check in doctor.CHECKS
    }
    assert (diagnosis.not_judged, diagnosis.exit_code) == ((), 0)


def test_machine_without_a_gpu_is_judged_by_what_can_be_judged() -> None:
    diagnosis = doctor.diagnose(NO_GPU)
    assert diagnosis.exit_code == 0
    assert "no GPU here" in diagnosis.findings["gpu"].sentence
    assert set(diagnosis.not_judged) == {check.name for check in doctor.CHECKS if check.needs_amd}
    assert "not judged without an AMD GPU: device files" in doctor.render(NO_GPU, diagnosis)


@pytest.mark.parametrize(
    ("facts", "check"),
    [
        (replace(GOOD, python=(3, 11)), "python"),
        (environment(VLLM_PLUGINS="lora,amdopt"), "plugin"),
        (environment(HIP_VISIBLE_DEVICES="0,1", CUDA_VISIBLE_DEVICES="0,1"), "contradictions"),
        (environment(VLLM_ROCM_USE_AITER="1", VLLM_ROCM_USE_AITER_MLA="1"), "contradictions"),
        (environment(VLLM_ROCM_QUICK_REDUCE_QUANTIZATION="INT4"), "contradictions"),
        (environment(VLLM_AMDOPT_STRICT="1", VLLM_ROCM_USE_AITER="1"), "vllm variables"),
        (replace(NO_GPU, environment={"TRITON_INTERPRET": "1"}), "contradictions"),
        (
            replace(
                environment(ATOM_DISABLE_VLLM_PLUGIN="1"),
                installation=installed(
                    plugins={**INSTALLED.plugins, "vllm.platform_plugins": ("atom", "amdopt")}
                ),
            ),
            "other platform plugin",
        ),
        (replace(GOOD, rocm=None), "torch"),
        (replace(GOOD, shared_memory_bytes=16 * GIB), "shared memory"),
    ],
)
def test_the_situation_next_to_it_is_fine(facts: Facts, check: str) -> None:
    assert doctor.diagnose(facts).findings[check].severity == "fine"


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"hardware": replace(GOOD.hardware, partition=None)}, "partition"),
        ({"numa_balancing": None}, "numa balancing"),
        ({"shared_memory_bytes": None}, "shared memory"),
        ({"hardware": replace(GOOD.hardware, host_memory_bytes=None)}, "host memory"),
        ({"gpus": (Gpu("gfx942"),)}, "scratch reclaim"),
        ({"caches": ()}, "caches"),
        ({"installation": installed(vllm_variables=None)}, "vllm variables"),
    ],
)
def test_what_is_not_known_is_not_judged(changes: Mapping[str, Any], check: str) -> None:
    assert check in doctor.diagnose(replace(GOOD, **changes)).not_judged


def test_checks_have_names_of_their_own() -> None:
    names = [check.name for check in doctor.CHECKS]
    assert len(set(names)) == len(names)


def test_worst_comes_first_and_remedies_stand_below() -> None:
    facts = replace(GOOD, numa_balancing=True, installation=installed(without="triton"))
    lines = doctor.render(facts, doctor.diagnose(facts)).splitlines()
    assert lines[0].startswith("wrong   triton ")
    assert lines[1].strip() == "→ install the Triton that belongs to your torch"
    assert lines[2].startswith("advice  numa balancing ")
    assert lines[-1] == f"1 to mend, 1 advised, {len(doctor.CHECKS) - 2} fine"
    assert max(map(len, lines)) <= 100


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Any) -> Machine:
    return Machine(tmp_path)


def test_facts_of_a_made_up_machine(machine: Machine) -> None:
    machine.eight_mi300x("CPX")
    machine.write(machine.root / "proc/sys/kernel/numa_balancing", "1\n")
    machine.write(machine.root / "dev/kfd", "")
    machine.write(machine.root / "dev/dri/renderD128", "")
    machine.write(machine.root / "dev/dri/card0", "")
    machine.write(machine.places.rocm / ".info/version", "7.2.2-1\n")
    (machine.places.kfd_processes / "4242").mkdir(parents=True)
    found = gather({"HOME": str(machine.root)}, root=machine.root, search_path=[], use_amdsmi=False)
    assert found.hardware.partition == "CPX"
    assert len(found.gpus) == len(found.on_bus) == 8
    assert (found.rocm, found.numa_balancing, found.gpu_processes) == ("7.2.2-1", True, (4242,))
    assert found.devices == {"/dev/kfd": "open", "/dev/dri": "open"}
    diagnosis = doctor.diagnose(found)
    assert diagnosis.exit_code == 1, "nothing is installed there"
    assert diagnosis.findings["partition"].severity == "advice"


def test_facts_of_an_empty_machine(machine: Machine) -> None:
    found = gather({}, root=machine.root, search_path=[], use_amdsmi=False)
    assert found.hardware == Hardware("cpu")
    assert found.devices == {"/dev/kfd": "absent", "/dev/dri": "absent"}
    assert (found.numa_balancing, found.shared_memory_bytes) == (None, None)


def test_device_file_without_permission(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write(machine.root / "dev/kfd", "")
    monkeypatch.setattr(facts.os, "access", lambda *_: False)
    found = gather({}, root=machine.root, search_path=[], use_amdsmi=False)
    assert found.devices["/dev/kfd"] == "denied"


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return parser.parse_args(arguments)


def test_json_says_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = replace(GOOD, installation=installed(without="triton"))
    monkeypatch.setattr(doctor, "gather", lambda _: bad)
    assert doctor.run(parsed("--json"), {}) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["machine"] == "AMD Instinct MI300X (gfx942)"
    assert document["exit_code"] == 1
    assert document["findings"][0]["name"] == "triton"
    assert set(document["findings"][0]) == {"name", "severity", "sentence", "remedy"}


def test_here_without_importing_torch_or_vllm(capsys: pytest.CaptureFixture[str]) -> None:
    before = set(sys.modules)
    assert doctor.run(parsed(), {}) in (0, 1)
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not new & {"torch", "vllm", "triton"}
    assert "fine    python" in capsys.readouterr().out
