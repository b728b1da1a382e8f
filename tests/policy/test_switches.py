"""The environment variables: what each value means, and a sentence for every other value."""

from __future__ import annotations

import pytest

from tests.policy.situations import NOTHING, VIRTUAL, instinct
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.serving_rules import ENTRIES
from vllm_amdopt.policy.switches import (
    NAMES,
    SWITCHES,
    SwitchError,
    read_switches,
    switch_from_plugin_argument,
)

KNOWN = ", ".join(entry.name for entry in ENTRIES)
GUARDS = [entry.name for entry in ENTRIES if isinstance(entry, Rule) and entry.level == "guard"]


def test_every_feature_and_rule_has_a_switch() -> None:
    assert ", ".join(NAMES) == KNOWN
    assert [switch.name for switch in SWITCHES] == [
        "VLLM_AMDOPT",
        "VLLM_AMDOPT_STRICT",
        "VLLM_AMDOPT_CPU_ENGINE",
        "VLLM_AMDOPT_EMULATE_REPORT",
        "VLLM_AMDOPT_QUICK_IMPORTS",
        "VLLM_AMDOPT_LOCK_DIR",
        "VLLM_AMDOPT_INJECT_FAULT",
        *(entry.switch for entry in ENTRIES),
    ]
    assert all(switch.summary and switch.values and switch.default for switch in SWITCHES)


@pytest.mark.parametrize(
    ("value", "active"),
    [
        ("1", True),
        ("on", True),
        ("TRUE", True),
        ("yes", True),
        ("auto", True),
        (" 1 ", True),
        ("0", False),
        ("off", False),
        ("False", False),
        ("no", False),
        ("", None),
        (" ", None),
    ],
)
def test_activation(value: str, active: bool | None) -> None:
    activation = read_switches({"VLLM_AMDOPT": value})
    assert activation.active is active
    expected = "off" if active is False else "auto"
    assert set(activation.modes.values()) == {expected}


def test_nothing_set() -> None:
    activation = read_switches({"PATH": "/bin", "VLLM_USE_V1": "1"})
    assert activation.active is None
    assert not activation.strict
    assert activation.engine == "gfx942"
    assert activation.listed == ()


def test_unset_means_amd_gpus_only() -> None:
    assert read_switches({}).applies_to(instinct())
    assert not read_switches({}).applies_to(NOTHING)
    assert not read_switches({}).applies_to(VIRTUAL)
    assert read_switches({"VLLM_AMDOPT": "1"}).applies_to(VIRTUAL)
    assert not read_switches({"VLLM_AMDOPT": "0"}).applies_to(instinct())


def test_list_is_on_and_all_others_off() -> None:
    activation = read_switches({"VLLM_AMDOPT": "mla, Attention,,mla"})
    assert activation.active is True
    assert activation.listed == ("attention", "mla")
    assert [name for name, mode in activation.modes.items() if mode == "on"] == ["attention", "mla"]
    assert [name for name, mode in activation.modes.items() if mode == "auto"] == GUARDS


def test_hyphens_are_taken_for_underscores() -> None:
    assert read_switches({"VLLM_AMDOPT": "all-reduce"}).listed == ("all_reduce",)


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        ("auto", "auto"),
        ("", "auto"),
        *((word, "on") for word in ("ON", "1", "true", "Yes")),
        *((word, "off") for word in ("off", "0", "false", "no")),
    ],
)
def test_single_switch(value: str, mode: str) -> None:
    activation = read_switches({"VLLM_AMDOPT_GEMM": value})
    assert activation.modes["gemm"] == mode
    assert activation.modes["attention"] == "auto"


def test_single_switch_overrides_the_list_but_not_zero() -> None:
    listed = read_switches({"VLLM_AMDOPT": "mla", "VLLM_AMDOPT_GEMM": "auto"})
    assert (listed.modes["gemm"], listed.modes["mla"]) == ("auto", "on")
    untouched = read_switches({"VLLM_AMDOPT": "0", "VLLM_AMDOPT_GEMM": "on"})
    assert untouched.modes["gemm"] == "off"


def test_strict_and_engine() -> None:
    activation = read_switches(
        {"VLLM_AMDOPT_STRICT": "1", "VLLM_AMDOPT_CPU_ENGINE": " Interpreter "}
    )
    assert activation.strict
    assert activation.engine == "interpreter"
    assert not read_switches({"VLLM_AMDOPT_STRICT": "0"}).strict
    assert read_switches({"VLLM_AMDOPT_CPU_ENGINE": ""}).engine == "gfx942"


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        pytest.param(
            {"VLLM_AMDOPT": "atention"},
            "VLLM_AMDOPT=atention: 'atention' is not a feature or default "
            f"(did you mean attention?); known are {KNOWN}",
            id="name with a slip",
        ),
        pytest.param(
            {"VLLM_AMDOPT": "mla,xyz"},
            f"VLLM_AMDOPT=mla,xyz: 'xyz' is not a feature or default; known are {KNOWN}",
            id="name like nothing",
        ),
        pytest.param(
            {"VLLM_AMDOPT": "2"},
            f"VLLM_AMDOPT=2: '2' is not a feature or default; known are {KNOWN}",
            id="number",
        ),
        pytest.param(
            {"VLLM_AMDOPT": "mla,off"},
            "VLLM_AMDOPT=mla,off: 'off' stands alone, not in a list of features",
            id="off in a list",
        ),
        pytest.param(
            {"VLLM_AMDOPT": ","},
            "VLLM_AMDOPT=,: expected 1, 0, or one of " + KNOWN,
            id="list of nothing",
        ),
        pytest.param(
            {"VLLM_AMDOPT_MLA": "yse"},
            "VLLM_AMDOPT_MLA=yse: expected auto, on or off (did you mean yes?)",
            id="switch with a slip",
        ),
        pytest.param(
            {"VLLM_AMDOPT_MLA": "2"}, "VLLM_AMDOPT_MLA=2: expected auto, on or off", id="switch 2"
        ),
        pytest.param(
            {"VLLM_AMDOPT_STRICT": "maybe"},
            "VLLM_AMDOPT_STRICT=maybe: expected 1 or 0",
            id="strict",
        ),
        pytest.param(
            {"VLLM_AMDOPT_CPU_ENGINE": "gfx943"},
            "VLLM_AMDOPT_CPU_ENGINE=gfx943: expected gfx942, gfx950, interpreter or reference "
            "(did you mean gfx942?)",
            id="engine",
        ),
        pytest.param(
            {"VLLM_AMDOPT_ATENTION": "on"},
            "VLLM_AMDOPT_ATENTION is not a variable of vllm-amdopt (did you mean "
            "VLLM_AMDOPT_ATTENTION?); `vllm-amdopt features` lists them",
            id="variable with a slip",
        ),
    ],
)
def test_bad_value_is_one_sentence(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(SwitchError) as caught:
        read_switches(environment)
    assert str(caught.value) == sentence


FREE_TEXT = (
    "VLLM_AMDOPT_INJECT_FAULT",  # the hooks are the integration's to know
    "VLLM_AMDOPT_EMULATE_REPORT",  # any path
    "VLLM_AMDOPT_LOCK_DIR",  # any path
)


@pytest.mark.parametrize(
    "name", [switch.name for switch in SWITCHES if switch.name not in FREE_TEXT]
)
def test_every_switch_refuses_what_it_does_not_know(name: str) -> None:
    with pytest.raises(SwitchError, match=rf"^{name}=#!: "):
        read_switches({name: "#!"})


def test_other_variables_are_nobody_elses_business() -> None:
    assert read_switches({"VLLM_AMDOPTICS": "x"}).active is None


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("amdopt", "1"),
        ("", "1"),
        ("1", "1"),
        ("on", "1"),
        ("auto", "1"),
        ("AMDOPT", "1"),
        ("off", "0"),
        ("0", "0"),
        ("attention,mla", "attention,mla"),
        ("mla, attention", "attention,mla"),
        ("all-reduce", "all_reduce"),
    ],
)
def test_plugin_argument(argument: str, value: str) -> None:
    assert switch_from_plugin_argument(argument) == value
    read_switches({"VLLM_AMDOPT": value})


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        pytest.param(
            "amdopt,mla",
            "--plugin amdopt,mla: 'amdopt' stands alone; list features without it, or give it only",
            id="amdopt in a list",
        ),
        pytest.param(
            "atom",
            f"--plugin atom: 'atom' is not a feature or default; known are {KNOWN}",
            id="another plugin",
        ),
        pytest.param(
            "gem",
            "--plugin gem: 'gem' is not a feature or default (did you mean gemm?); "
            f"known are {KNOWN}",
            id="slip",
        ),
        pytest.param(
            "of",
            f"--plugin of: 'of' is not a feature or default (did you mean off?); known are {KNOWN}",
            id="off with a slip",
        ),
    ],
)
def test_bad_plugin_argument(argument: str, sentence: str) -> None:
    with pytest.raises(SwitchError) as caught:
        switch_from_plugin_argument(argument)
    assert str(caught.value) == sentence
