"""How a plan is decided: precedence, purity, the record that travels to the workers."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from typing import Any

import pytest

from tests.policy.situations import (
    CURRENT_AITER,
    INTERPRETER,
    NOTHING,
    NVIDIA,
    REFERENCE,
    VIRTUAL,
    facts,
    instinct,
    plan,
    situation,
)
from vllm_amdopt import __version__
from vllm_amdopt.policy.plan import Decision, Plan, PlanError, make_plan
from vllm_amdopt.policy.switches import NAMES, SwitchError

GPU = instinct()


@pytest.mark.parametrize(
    ("environment", "hardware", "model", "choices", "on", "origin", "reason"),
    [
        pytest.param(
            {},
            VIRTUAL,
            "llama-3.1-8b",
            {},
            True,
            "default",
            "own kernels keep all compute units busy at small batches and long contexts",
            id="auto, everything holds",
        ),
        pytest.param(
            {},
            GPU,
            "llama-3.1-8b",
            {},
            False,
            "default",
            "no measurement on this GPU yet; VLLM_AMDOPT_ATTENTION=on uses it",
            id="auto, soft condition fails",
        ),
        pytest.param(
            {},
            VIRTUAL,
            "deepseek-v3",
            {},
            False,
            "default",
            "the model has MLA, not MHA, GQA or MQA",
            id="auto, hard condition fails",
        ),
        pytest.param(
            {"VLLM_AMDOPT_ATTENTION": "on"},
            VIRTUAL,
            "llama-3.1-8b",
            {},
            True,
            "switch",
            "switched on by VLLM_AMDOPT_ATTENTION=on",
            id="on, everything holds",
        ),
        pytest.param(
            {"VLLM_AMDOPT_ATTENTION": "true"},
            GPU,
            "llama-3.1-8b",
            {},
            True,
            "switch",
            "forced by VLLM_AMDOPT_ATTENTION=true although no measurement on this GPU yet",
            id="on, soft condition fails",
        ),
        pytest.param(
            {"VLLM_AMDOPT_ATTENTION": "on"},
            VIRTUAL,
            "deepseek-v3",
            {},
            False,
            "switch",
            "the model has MLA, not MHA, GQA or MQA",
            id="on, hard condition fails",
        ),
        pytest.param(
            {"VLLM_AMDOPT_ATTENTION": "off"},
            VIRTUAL,
            "llama-3.1-8b",
            {},
            False,
            "switch",
            "switched off by VLLM_AMDOPT_ATTENTION=off",
            id="off",
        ),
        pytest.param(
            {"VLLM_AMDOPT": "0", "VLLM_AMDOPT_ATTENTION": "on"},
            VIRTUAL,
            "llama-3.1-8b",
            {},
            False,
            "switch",
            "switched off by VLLM_AMDOPT=0",
            id="all off",
        ),
        pytest.param(
            {"VLLM_AMDOPT": "gemm"},
            VIRTUAL,
            "llama-3.1-8b",
            {},
            False,
            "switch",
            "switched off by VLLM_AMDOPT=gemm (a list without it)",
            id="not in the list",
        ),
        pytest.param(
            {"VLLM_AMDOPT": "attention,gemm"},
            GPU,
            "llama-3.1-8b",
            {},
            True,
            "switch",
            "forced by VLLM_AMDOPT=attention,gemm although no measurement on this GPU yet",
            id="in the list",
        ),
        pytest.param(
            {},
            VIRTUAL,
            "llama-3.1-8b",
            {"attention_backend": "TRITON_ATTN"},
            False,
            "user",
            "you chose --attention-backend TRITON_ATTN, which stays",
            id="the user chose another",
        ),
        pytest.param(
            {"VLLM_AMDOPT_ATTENTION": "on"},
            VIRTUAL,
            "llama-3.1-8b",
            {"attention_backend": "TRITON_ATTN"},
            False,
            "user",
            "you chose --attention-backend TRITON_ATTN, which stays",
            id="the user chose another and switched it on",
        ),
        pytest.param(
            {},
            GPU,
            "llama-3.1-8b",
            {"attention_backend": "AMDOPT_ATTN"},
            True,
            "user",
            "forced by --attention-backend AMDOPT_ATTN although no measurement on this GPU yet",
            id="the user named ours",
        ),
        pytest.param(
            {"VLLM_AMDOPT_ATTENTION": "off"},
            GPU,
            "llama-3.1-8b",
            {"attention_backend": "AMDOPT_ATTN"},
            False,
            "switch",
            "switched off by VLLM_AMDOPT_ATTENTION=off",
            id="the user named ours and switched it off",
        ),
    ],
)
def test_precedence_of_a_feature(
    environment: dict[str, str],
    hardware: Any,
    model: str,
    choices: dict[str, Any],
    on: bool,
    origin: str,
    reason: str,
) -> None:
    decision = plan(model, hardware, environment=environment, **choices).decision("attention")
    assert (decision.on, decision.origin, decision.reason) == (on, origin, reason)


@pytest.mark.parametrize(
    ("environment", "choices", "on", "origin", "settings"),
    [
        pytest.param({}, {}, True, "default", {"block_size": 1}, id="auto"),
        pytest.param({}, {"block_size": 16}, False, "user", {}, id="the user gave one"),
        pytest.param(
            {"VLLM_AMDOPT_MLA_BLOCK_SIZE": "on"},
            {"block_size": 16},
            False,
            "user",
            {},
            id="the user gave one and switched it on",
        ),
        pytest.param(
            {"VLLM_AMDOPT_MLA_BLOCK_SIZE": "off"}, {}, False, "switch", {}, id="switched off"
        ),
        pytest.param(
            {"VLLM_AMDOPT_MLA_BLOCK_SIZE": "on"},
            {},
            True,
            "switch",
            {"block_size": 1},
            id="switched on",
        ),
        pytest.param(
            {"VLLM_AMDOPT_MLA": "off"},
            {},
            False,
            "default",
            {},
            id="follows from what was decided before",
        ),
    ],
)
def test_precedence_of_a_rule(
    environment: dict[str, str],
    choices: dict[str, Any],
    on: bool,
    origin: str,
    settings: dict[str, Any],
) -> None:
    decision = plan("deepseek-v3", VIRTUAL, environment=environment, **choices).decision(
        "mla_block_size"
    )
    assert (decision.on, decision.origin, dict(decision.settings)) == (on, origin, settings)


@pytest.mark.parametrize(
    ("environment", "choices", "warnings"),
    [
        pytest.param({}, {}, (), id="nothing asked for"),
        pytest.param(
            {"VLLM_AMDOPT_MLA": "on"},
            {},
            ("VLLM_AMDOPT_MLA=on cannot be honoured, mla is off: the model has GQA, not MLA",),
            id="switched on in vain",
        ),
        pytest.param(
            {"VLLM_AMDOPT": "mla"},
            {},
            ("VLLM_AMDOPT=mla cannot be honoured, mla is off: the model has GQA, not MLA",),
            id="listed in vain",
        ),
        pytest.param(
            {"VLLM_AMDOPT_ATTENTION": "on"},
            {"attention_backend": "CPU_ATTN"},
            (
                "VLLM_AMDOPT_ATTENTION=on cannot be honoured, attention is off: you chose "
                "--attention-backend CPU_ATTN, which stays",
            ),
            id="switched on against the user's own flag",
        ),
        pytest.param(
            {},
            {"attention_backend": "AMDOPT_MLA"},
            (
                "--attention-backend AMDOPT_MLA cannot be honoured, mla is off: the model has GQA, "
                "not MLA",
            ),
            id="our backend named in vain",
        ),
        pytest.param(
            {"VLLM_AMDOPT_ATTENTION": "off"},
            {"attention_backend": "AMDOPT_ATTN"},
            (
                "--attention-backend AMDOPT_ATTN asks for attention, which "
                "VLLM_AMDOPT_ATTENTION=off switches off",
            ),
            id="our backend named and switched off",
        ),
    ],
)
def test_warnings(
    environment: dict[str, str], choices: dict[str, Any], warnings: tuple[str, ...]
) -> None:
    assert plan(environment=environment, **choices).warnings == warnings


@pytest.mark.parametrize("version", ["0.29.1", "0.34.0", "1.0.0"])
def test_vllm_outside_the_range_warns_and_serves_on(version: str) -> None:
    made = plan(vllm=version)
    (warning,) = made.warnings
    assert warning.startswith(f"vLLM {version} is outside the range >=0.30,<0.34")
    assert made.is_on("attention"), "its seam is there, so it stays"


def test_vllm_of_unknown_version_is_no_reason_to_warn() -> None:
    assert plan(vllm=None).warnings == ()
    assert plan(vllm="dev").warnings == ()


@pytest.mark.parametrize(
    ("seam", "name"),
    [
        ("attention_backend", "attention"),
        ("unquantized_gemm", "gemm"),
        ("device_communicator", "all_reduce"),
    ],
)
def test_missing_seam_switches_off_what_needs_it(seam: str, name: str) -> None:
    sentence = "this vLLM has no such place"
    whole = plan(tensor_parallel_size=2)
    made = plan(tensor_parallel_size=2, missing_seams={seam: sentence})
    assert whole.is_on(name)
    assert made.decision(name).reason == sentence
    assert [n for n in NAMES if whole.is_on(n) != made.is_on(n)] == [name]


def test_model_that_could_not_be_read() -> None:
    made = plan(None, tensor_parallel_size=2)
    assert [d.name for d in made.decisions if d.on] == ["all_reduce"], "it asks nothing of a model"
    assert "could not be read" in made.decision("attention").reason
    assert made.model == "unknown model"


def test_every_name_is_decided_in_order() -> None:
    assert tuple(decision.name for decision in plan().decisions) == NAMES
    with pytest.raises(KeyError, match="no decision on 'nonsense'"):
        plan().decision("nonsense")


@pytest.mark.parametrize(
    "hardware",
    [
        VIRTUAL,
        INTERPRETER,
        REFERENCE,
        NVIDIA,
        NOTHING,
        GPU,
        instinct("gfx90a"),
        instinct("gfx1201"),
    ],
    ids=lambda hardware: hardware.gfx or hardware.engine or hardware.kind,
)
@pytest.mark.parametrize("model", ["llama-3.1-8b", "deepseek-v3", "qwen3-next-80b-a3b", None])
@pytest.mark.parametrize("mode", ["auto", "on"])
def test_decisions_are_consistent(hardware: Any, model: str | None, mode: str) -> None:
    environment = {f"VLLM_AMDOPT_{name.upper()}": mode for name in NAMES}
    made = plan(model, hardware, environment=environment, aiter=CURRENT_AITER)
    for decision in made.decisions:
        assert decision.reason, decision
        assert not decision.reason.endswith("."), "the table joins reasons with other text"
        assert decision.on or not decision.settings, "what is off sets nothing"
        assert not (decision.kind == "default" and decision.on) or decision.settings
        assert (decision.numerics is None) == (decision.kind != "feature")
        assert decision.origin == ("default" if mode == "auto" else "switch")
    off = [d.name for d in made.decisions if not d.on and d.kind != "guard"]
    assert len(made.warnings) == (0 if mode == "auto" else len(off))
    assert Plan.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_planning_changes_nothing() -> None:
    given = situation(environment={"VLLM_AMDOPT": "1"}, hardware=GPU, aiter=CURRENT_AITER)
    before = copy.deepcopy(given)
    assert make_plan(given) == make_plan(given)
    assert given == before
    assert dict(given.decided) == {}


def test_bad_switch_is_an_error() -> None:
    with pytest.raises(SwitchError, match="VLLM_AMDOPT_MLA=perhaps"):
        plan(environment={"VLLM_AMDOPT_MLA": "perhaps"})


def test_digest_is_that_of_the_deeds() -> None:
    made = plan()
    assert len(made.digest) == 12
    assert int(made.digest, 16) >= 0
    reworded = tuple(replace(decision, reason="other words") for decision in made.decisions)
    assert replace(made, decisions=reworded, warnings=("x",), model="y").digest == made.digest
    different = [
        plan(environment={"VLLM_AMDOPT_GEMM": "off"}),
        plan(vllm="0.31.0"),
        plan(hardware=INTERPRETER, dtype="float32"),
        plan("deepseek-v3"),
        replace(made, plugin_version="9.9.9"),
    ]
    assert len({made.digest, *(other.digest for other in different)}) == len(different) + 1


def test_digest_of_a_given_plan_never_changes() -> None:
    """It is part of vLLM's compile-cache key, so it must not depend on anything but the deeds."""
    decision = Decision(
        name="kv_offload",
        kind="default",
        on=True,
        settings={"kv_offloading_size": 64.0, "attention_backend": "TRITON_ATTN"},
        origin="default",
        reason="any",
        evidence="any",
        numerics=None,
    )
    made = Plan((decision,), "gfx942", "amd", None, "any", "0.32.0", plugin_version="0.1.0")
    assert made.digest == "790ac9a388dd"
    turned = dict(reversed(list(decision.settings.items())))
    assert replace(made, decisions=(replace(decision, settings=turned),)).digest == made.digest


def test_record_round_trip() -> None:
    made = plan("llama-3.1-8b", GPU, aiter=CURRENT_AITER, environment={"VLLM_AMDOPT_MLA": "on"})
    assert made.is_on("kv_offload")
    assert made.warnings
    record = json.loads(json.dumps(made.to_dict()))
    again = Plan.from_dict(record)
    assert again == made
    assert again.digest == made.digest
    assert again.to_dict() == made.to_dict()
    assert pickle.loads(pickle.dumps(made)) == made
    assert made.plugin_version == __version__


def broken(**changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = plan("llama-3.1-8b", GPU, aiter=CURRENT_AITER).to_dict()
    return {**record, **changes}


def broken_decision(**changes: Any) -> dict[str, Any]:
    record: Any = broken()
    return {**record, "decisions": [{**record["decisions"][0], **changes}]}


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        pytest.param([], "a plan record is a mapping, not a list", id="a list"),
        pytest.param({}, "the plan record has format None, this version reads 2", id="empty"),
        pytest.param(broken(format=3), "has format 3, this version reads 2", id="newer format"),
        pytest.param(broken(decisions=None), "'decisions' is None, expected a list", id="no list"),
        pytest.param(broken(decisions=["x"]), "a decision record is a mapping", id="no mapping"),
        pytest.param(broken(warnings=[1]), "'warnings' are not all strings", id="warnings"),
        pytest.param(broken(gfx=3), "'gfx' is 3, expected a string or null", id="gfx a number"),
        pytest.param(broken(model=None), "'model' is None, expected a str", id="no model"),
        pytest.param(broken(digest="0" * 12), "does not fit its contents", id="digest changed"),
        pytest.param(broken_decision(on="yes"), "'on' is 'yes', expected a bool", id="on a word"),
        pytest.param(broken_decision(kind="x"), "has kind 'x'", id="kind"),
        pytest.param(broken_decision(origin="x"), "has origin 'x'", id="origin"),
        pytest.param(broken_decision(settings={"a": []}), "sets 'a' to []", id="a setting a list"),
        pytest.param(
            broken_decision(settings={"a": [1]}), "sets 'a' to [1]", id="a setting a list"
        ),
        pytest.param(broken_decision(name=None), "'name' is None", id="no name"),
    ],
)
def test_broken_record(record: Any, sentence: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_dict(record)
    assert sentence in str(caught.value)


def test_measured_win_switches_a_feature_on() -> None:
    made = plan(hardware=GPU, measured_wins={"attention": "12 of 12 shapes"})
    assert made.is_on("attention")
    assert not made.is_on("gemm")


def test_facts_from_elsewhere_do_as_well() -> None:
    assert plan(facts("glm-4.5")).is_on("attention")


@pytest.mark.parametrize(
    ("name", "model", "reason"),
    [
        ("minimax_block_size", "kimi-k2.5", "the model is kimi_k2, not minimax_m3"),
        ("mla_block_size", "kimi-k2.5", "without AITER vLLM selects TRITON_MLA"),
        ("aiter_rdna4", "kimi-k2.5", "gfx942 is not one of gfx1200 or gfx1201"),
    ],
)
def test_a_choice_is_no_reason_where_nothing_would_be_set_without_it(
    name: str, model: str, reason: str
) -> None:
    made = plan(
        model,
        instinct(),
        aiter=CURRENT_AITER,
        block_size=1,
        environment={"VLLM_ROCM_USE_AITER": "0"},
    )
    decision = made.decision(name)
    assert (decision.on, decision.origin) == (False, "default")
    assert reason in decision.reason
    assert made.decision("aiter").origin == "user"
