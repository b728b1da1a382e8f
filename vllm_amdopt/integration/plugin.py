"""vLLM's entry points into this package; the one module of this layer that sees the environment.

vLLM calls `register_platform` in every process while it resolves its platform, twice, and
`register` once in every process after that. Neither may be slow, and neither may raise for anything
that is not the user's explicit wish: an exception from the first is logged at DEBUG only and turns
into stock vLLM in silence, an exception from the second ends the server.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, MutableMapping
from importlib.metadata import entry_points
from typing import Any

from vllm_amdopt.integration import quick_imports

PLATFORM_GROUP = "vllm.platform_plugins"
ENTRY_POINT_NAME = "amdopt"

PLATFORM_CLASSES = {
    "rocm": "vllm_amdopt.integration.platform_rocm.AmdOptRocmPlatform",
    "cuda": "vllm_amdopt.integration.platform_cuda.AmdOptCudaPlatform",
    "cpu": "vllm_amdopt.integration.platform_cpu.AmdOptCpuPlatform",
}
"""Ours, by the name vLLM gives the platform that it would have chosen itself."""


class _Outcome:
    """What `register_platform` decided in this process."""

    def __init__(self) -> None:
        self.decided = False
        self.platform_class: str | None = None
        self.argument_given = False
        self.requested = False
        self.strict = False
        self.reason = "vLLM never asked: VLLM_PLUGINS or VLLM_TARGET_DEVICE keeps plugins out"


_outcome = _Outcome()
_ours: dict[str, str] = {}


def environment() -> MutableMapping[str, str]:
    """The process environment; everything else in this layer takes it from here."""
    return os.environ


def users_environment() -> dict[str, str]:
    """The process environment without what an earlier plan of this process put there."""
    return {name: value for name, value in os.environ.items() if _ours.get(name) != value}


def remember_ours(name: str, value: str) -> None:
    """Note that a plan set this variable, so that the next plan does not take it for the user's."""
    _ours[name] = value


def is_main_process() -> bool:
    """Whether this is the process that the user started, which does the talking."""
    return multiprocessing.parent_process() is None


def register_platform() -> str | None:
    """Name our subclass of the platform that vLLM would have chosen, or None to leave vLLM alone.

    Exits with one sentence when `--plugin` asks for something that does not exist.
    """
    if not _outcome.decided:
        _outcome.decided = True
        try:
            _outcome.platform_class = _decide()
        except Exception as error:
            known = isinstance(error, ValueError)  # SwitchError: a sentence that stands alone
            _outcome.reason = str(error) if known else f"{type(error).__name__}: {error}"
            if not _outcome.argument_given:
                _outcome.requested = False  # said here, not again in `register`
                _complain(f"vllm-amdopt is off, vLLM runs as it is: {_outcome.reason}")
    return _outcome.platform_class


def register() -> None:
    """Check that an explicit wish for the plugin came true; the rest happens in the platform.

    Raises SystemExit with one sentence when `--plugin` was given, or VLLM_AMDOPT set under
    VLLM_AMDOPT_STRICT=1, and vLLM nevertheless runs on another platform class than ours.
    """
    if not _outcome.decided:
        register_platform()
    quick_imports.end()
    if not (_outcome.argument_given or _outcome.requested):
        return
    from vllm.platforms import current_platform

    if getattr(type(current_platform), "amdopt", False):
        return
    if _outcome.platform_class is not None:
        _outcome.reason = (
            f"vLLM runs on {type(current_platform).__name__}; unset VLLM_TARGET_DEVICE and let "
            "VLLM_PLUGINS, if set, name amdopt"
        )
    if _outcome.argument_given:
        sys.exit(
            f"vllm-amdopt: --plugin was given, but the plugin is not active: {_outcome.reason}."
        )
    if is_main_process():
        _complain(f"VLLM_AMDOPT asks for vllm-amdopt, but it is not active: {_outcome.reason}.")


def _decide() -> str | None:
    from vllm_amdopt.policy.switches import SwitchError, read_switches, switch_from_plugin_argument

    argument = find_plugin_argument(sys.argv)
    if argument is not None:
        try:
            value = switch_from_plugin_argument(argument)
        except SwitchError as error:
            sys.exit(f"vllm-amdopt: {error}")
        os.environ["VLLM_AMDOPT"] = value
        if value == "0":
            # With the plugin off nobody adds `--plugin` to vLLM's parser, so take it away here.
            # In all other cases it stays: should the plugin fail to come up, vLLM's own parser
            # refuses an option that it does not know, instead of serving stock in silence.
            remove_plugin_argument(sys.argv)
        else:
            _outcome.argument_given = True

    _outcome.strict = os.environ.get("VLLM_AMDOPT_STRICT", "0").strip() == "1"
    _outcome.requested = os.environ.get("VLLM_AMDOPT", "").strip() not in ("", "0")
    _register_switches_with_vllm()
    activation = read_switches(os.environ)
    if activation.active is False:
        _outcome.requested = False
        _outcome.reason = "VLLM_AMDOPT=0"
        return None

    from vllm.platforms import builtin_platform_plugins

    builtin = _active_builtin(builtin_platform_plugins)
    if activation.active is None and builtin != "rocm":
        _outcome.reason = "no AMD GPU was found and VLLM_AMDOPT is not set"
        return None
    other = _other_platform_plugin()
    if other is not None:
        _outcome.reason = (
            f"the platform plugin {other!r} is active and vLLM takes only one; to use vllm-amdopt "
            f"set VLLM_PLUGINS={ENTRY_POINT_NAME}"
        )
        if not _outcome.argument_given and not _outcome.requested:
            _complain(f"vllm-amdopt steps aside: {_outcome.reason}.", warning=False)
        return None
    if builtin not in PLATFORM_CLASSES:
        _outcome.reason = (
            f"vLLM's platform here is {builtin or 'unknown'}; rocm, cuda and cpu are served"
        )
        return None
    if builtin == "cpu" and activation.engine == "interpreter":
        # Triton decides between compiling and interpreting when it is imported, which happens
        # soon after this; the workers inherit the variable.
        os.environ.setdefault("TRITON_INTERPRET", "1")
    qualname = PLATFORM_CLASSES[builtin]
    if activation.quick_imports:
        quick_imports.begin()
    _import_class(qualname).register_backends()
    return qualname


def find_plugin_argument(arguments: list[str]) -> str | None:
    """The value of `--plugin` on vLLM's own command line: "" when it stands alone, None without it.

    The platform is resolved before vLLM parses its arguments, hence this look ahead. Another
    program's `--plugin` is none of our business, so only vLLM's entry points are looked at.
    """
    position = _plugin_position(arguments)
    if position is None:
        return None
    if arguments[position].startswith("--plugin="):
        return arguments[position].removeprefix("--plugin=")
    following = arguments[position + 1 : position + 2]
    return following[0] if following and not following[0].startswith("-") else ""


def remove_plugin_argument(arguments: list[str]) -> None:
    """Take `--plugin` and its value out of `arguments`, in place."""
    position = _plugin_position(arguments)
    if position is None:
        return
    value = find_plugin_argument(arguments)
    del arguments[position]
    if value and position < len(arguments) and arguments[position] == value:
        del arguments[position]


def options_given(arguments: list[str]) -> frozenset[str]:
    """The long options on vLLM's own command line, as "--block-size"; empty for other programs.

    With it a default that the user spelled out can be told from one that they left alone.
    """
    if not arguments or not is_vllm_command(arguments[0]):
        return frozenset()
    names = (text.partition("=")[0] for text in arguments[1:] if text.startswith("--"))
    return frozenset(name.replace("_", "-") for name in names)


def _plugin_position(arguments: list[str]) -> int | None:
    if not arguments or not is_vllm_command(arguments[0]):
        return None
    for position, argument in enumerate(arguments[1:], start=1):
        if argument == "--":
            return None
        if argument == "--plugin" or argument.startswith("--plugin="):
            return position
    return None


def is_vllm_command(program: str) -> bool:
    path = program.replace(os.sep, "/")
    return path.rsplit("/", 1)[-1] in ("vllm", "vllm.exe") or "/vllm/entrypoints/" in path


def _active_builtin(probes: dict[str, Callable[[], str | None]]) -> str | None:
    """The platform that vLLM would have chosen itself."""
    for name, probe in probes.items():
        try:
            if probe() is not None:
                return name
        except Exception:  # vLLM treats a failing probe as "not here" as well
            continue
    return None


def _other_platform_plugin() -> str | None:
    """The name of another out-of-tree platform plugin that would become active, or None."""
    allowed = os.environ.get("VLLM_PLUGINS")
    names = None if allowed is None else {name.strip() for name in allowed.split(",")}
    for plugin in entry_points(group=PLATFORM_GROUP):
        if plugin.name == ENTRY_POINT_NAME or (names is not None and plugin.name not in names):
            continue
        try:
            if plugin.load()() is not None:
                return plugin.name
        except Exception:  # as in vLLM: a plugin that fails is not active
            continue
    return None


def _register_switches_with_vllm() -> None:
    """Make vLLM know our variables: no warning about them, and its compile cache sees them."""
    import vllm.envs

    from vllm_amdopt.policy.switches import SWITCHES

    for switch in SWITCHES:
        vllm.envs.environment_variables.setdefault(switch.name, _getter(switch.name))


def _getter(name: str) -> Callable[[], str]:
    return lambda: os.environ.get(name, "")


def _import_class(qualname: str) -> Any:
    """Import our platform now: a failure here still is a fallback, later it is a crash."""
    from importlib import import_module

    module, name = qualname.rsplit(".", 1)
    return getattr(import_module(module), name)


def _complain(sentence: str, *, warning: bool = True) -> None:
    """Say it once, in the main process; under VLLM_AMDOPT_STRICT=1 a warning ends the program."""
    if warning and _outcome.strict:
        sys.exit(f"vllm-amdopt: {sentence} (VLLM_AMDOPT_STRICT=1)")
    if not is_main_process():
        return
    from vllm.logger import init_logger

    logger = init_logger("vllm.amdopt")
    (logger.warning if warning else logger.info)("%s", sentence)
