"""The environment variables: read, checked, and rendered from the features and rules.

Reads a mapping, never os.environ: the caller decides whose environment it is.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_amdopt.hardware import CPU_ENGINES, Hardware
from vllm_amdopt.policy.features import FEATURES
from vllm_amdopt.policy.serving_rules import ENTRIES, RULES

Mode = Literal["auto", "on", "off"]

NAMES: tuple[str, ...] = tuple(entry.name for entry in ENTRIES)
"""Every feature and rule that a switch or a list may name, in plan order."""


class SwitchError(ValueError):
    """A switch with a value that nobody can mean; the message is one sentence for the user."""


@dataclass(frozen=True)
class Switch:
    """One environment variable, for the documents and for vLLM's list of known variables."""

    name: str
    values: tuple[str, ...]
    default: str
    summary: str


GENERAL_SWITCHES: tuple[Switch, ...] = (
    Switch(
        name="VLLM_AMDOPT",
        values=("unset", "1", "0", "comma list of features and defaults"),
        default="unset",
        summary=(
            "unset: active if the machine has an AMD GPU; 1: active, every switch auto; 0: vLLM "
            "is left untouched; a list: active, the named ones and the guards on, all others off"
        ),
    ),
    Switch(
        name="VLLM_AMDOPT_STRICT",
        values=("0", "1"),
        default="0",
        summary="1: what would be a warning and stock vLLM is an error that names the feature",
    ),
    Switch(
        name="VLLM_AMDOPT_CPU_ENGINE",
        values=CPU_ENGINES,
        default="gfx942",
        summary=(
            "what runs the kernels on a machine without a GPU: emulated gfx942 or gfx950 machine "
            "code, Triton's interpreter (needs --dtype float32), or the plain-PyTorch references"
        ),
    ),
    Switch(
        name="VLLM_AMDOPT_EMULATE_REPORT",
        values=("unset", "directory", "name of a .json file"),
        default="unset",
        summary=(
            "on the engines gfx942 and gfx950 each process records there what it emulated; "
            "`vllm-amdopt emulate-report` adds the records up"
        ),
    ),
    Switch(
        name="VLLM_AMDOPT_QUICK_IMPORTS",
        values=("1", "0"),
        default="1",
        summary=(
            "0: Python's garbage collector works as always while vLLM is imported; otherwise it "
            "looks away meanwhile where the plugin is active, which shortens the start"
        ),
    ),
    Switch(
        name="VLLM_AMDOPT_LOCK_DIR",
        values=("unset", "directory"),
        default="unset",
        summary=(
            "where `vllm-amdopt bench` keeps its locks of GPUs, /var/lock/vllm-amdopt unless set; "
            "everybody on a machine and in its containers needs the same one"
        ),
    ),
    Switch(
        name="VLLM_AMDOPT_INJECT_FAULT",
        values=("unset", "name of a hook", "HOOK:scale=FACTOR", "HOOK:zero=SHARE"),
        default="unset",
        summary=(
            "for tests only: makes that hook of the plugin fail, to see that a failure costs one "
            "feature and no request, or makes its answers wrong, to see that `vllm-amdopt "
            "accuracy` notices; the hooks are listed in vllm_amdopt/integration/faults.py"
        ),
    ),
)

SWITCHES: tuple[Switch, ...] = (
    *GENERAL_SWITCHES,
    *(Switch(entry.switch, ("auto", "on", "off"), "auto", entry.swaps) for entry in FEATURES),
    *(Switch(rule.switch, ("auto", "on", "off"), "auto", rule.sets.describe()) for rule in RULES),
)
"""All environment variables of the plugin, the general ones first."""

_PREFIX = "VLLM_AMDOPT"
_TRUE = ("1", "on", "true", "yes")
_FALSE = ("0", "off", "false", "no")
_GUARDS = tuple(rule.name for rule in RULES if rule.level == "guard")
_NAME_OF_SWITCH = {entry.switch: entry.name for entry in ENTRIES}


@dataclass(frozen=True)
class Activation:
    """What the environment asks for.

    `active`: None where VLLM_AMDOPT is unset. `modes` and `sources` have an entry for every name;
    a source is the text that set the mode ("VLLM_AMDOPT_MLA=off"), empty where nothing did.
    """

    active: bool | None
    modes: Mapping[str, Mode]
    strict: bool
    quick_imports: bool
    engine: str
    listed: tuple[str, ...]
    sources: Mapping[str, str]

    def applies_to(self, hardware: Hardware) -> bool:
        """Whether the plugin is to act here: as asked, and if nothing is, on AMD GPUs."""
        return hardware.kind == "amd" if self.active is None else self.active


def read_switches(environment: Mapping[str, str]) -> Activation:
    """The switches in `environment`. SwitchError on an unknown variable, name or value."""
    known = {switch.name for switch in SWITCHES}
    for variable in environment:
        if (variable == _PREFIX or variable.startswith(f"{_PREFIX}_")) and variable not in known:
            raise SwitchError(
                f"{variable} is not a variable of vllm-amdopt{_suggestion(variable, known)}; "
                "`vllm-amdopt features` lists them"
            )
    active, listed = _general(environment.get(_PREFIX, ""))
    asked = f"{_PREFIX}={environment.get(_PREFIX, '').strip()}"
    modes: dict[str, Mode] = {}
    sources: dict[str, str] = {}
    for name in NAMES:
        if active is False:
            modes[name], sources[name] = "off", asked
        elif listed and (name in listed or name not in _GUARDS):
            modes[name], sources[name] = ("on" if name in listed else "off"), asked
        else:
            modes[name], sources[name] = "auto", ""
    for variable, name in _NAME_OF_SWITCH.items():
        mode = _mode(variable, environment.get(variable, ""))
        if mode is not None and active is not False:
            modes[name] = mode
            sources[name] = f"{variable}={environment[variable].strip()}"
    return Activation(
        active=active,
        modes=modes,
        strict=_boolean(f"{_PREFIX}_STRICT", environment.get(f"{_PREFIX}_STRICT", "")),
        quick_imports=_boolean(
            f"{_PREFIX}_QUICK_IMPORTS", environment.get(f"{_PREFIX}_QUICK_IMPORTS", "") or "1"
        ),
        engine=_engine(environment.get(f"{_PREFIX}_CPU_ENGINE", "")),
        listed=listed,
        sources=sources,
    )


def switch_from_plugin_argument(value: str) -> str:
    """The VLLM_AMDOPT value that `--plugin VALUE` means. SwitchError on an unknown name.

    "amdopt" (and an empty value) is "1"; "off" is "0"; a list becomes its canonical form.
    """
    if value.strip().lower() in ("", "amdopt"):
        return "1"
    if "amdopt" in _items(value):
        raise SwitchError(
            f"--plugin {value}: 'amdopt' stands alone; list features without it, or give it only"
        )
    active, listed = _general(value, option="--plugin ")
    if listed:
        return ",".join(listed)
    return "1" if active else "0"


def _general(value: str, option: str = f"{_PREFIX}=") -> tuple[bool | None, tuple[str, ...]]:
    """(active, listed names) of a VLLM_AMDOPT value; (None, ()) where it is empty."""
    text = value.strip().lower()
    if not text:
        return None, ()
    if text in (*_TRUE, "auto"):
        return True, ()
    if text in _FALSE:
        return False, ()
    names = _items(value)
    for name in names:
        if name in (*_TRUE, *_FALSE, "auto"):
            raise SwitchError(f"{option}{value}: {name!r} stands alone, not in a list of features")
        if name not in NAMES:
            raise SwitchError(
                f"{option}{value}: {name!r} is not a feature or default"
                f"{_suggestion(name, (*NAMES, 'off', 'on'))}; known are {', '.join(NAMES)}"
            )
    if not names:
        raise SwitchError(f"{option}{value}: expected 1, 0, or one of {', '.join(NAMES)}")
    return True, tuple(name for name in NAMES if name in names)


def _items(value: str) -> tuple[str, ...]:
    """The names in a comma list, lower case, with hyphens read as underscores."""
    parts = (part.strip().lower().replace("-", "_") for part in value.split(","))
    return tuple(part for part in parts if part)


def _mode(variable: str, value: str) -> Mode | None:
    text = value.strip().lower()
    if not text:
        return None
    if text == "auto":
        return "auto"
    if text in _TRUE:
        return "on"
    if text in _FALSE:
        return "off"
    raise SwitchError(_bad_value(variable, value, ("auto", "on", "off"), (*_TRUE, *_FALSE)))


def _boolean(variable: str, value: str) -> bool:
    text = value.strip().lower()
    if text in ("", *_FALSE):
        return False
    if text in _TRUE:
        return True
    raise SwitchError(_bad_value(variable, value, ("1", "0"), (*_TRUE, *_FALSE)))


def _engine(value: str) -> str:
    text = value.strip().lower()
    if not text:
        return CPU_ENGINES[0]
    if text not in CPU_ENGINES:
        raise SwitchError(_bad_value(f"{_PREFIX}_CPU_ENGINE", value, CPU_ENGINES, ()))
    return text


def _bad_value(variable: str, value: str, expected: Iterable[str], accepted: Iterable[str]) -> str:
    words = tuple(expected)
    return (
        f"{variable}={value}: expected {', '.join(words[:-1])} or {words[-1]}"
        f"{_suggestion(value.strip().lower(), (*words, *accepted))}"
    )


def _suggestion(word: str, candidates: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, tuple(candidates), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
