"""The entry points: what `--plugin` means, who is left alone, and when a wish becomes an error."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from vllm_amdopt.integration import plugin, quick_imports

VLLM = ["/somewhere/bin/vllm", "serve", "model"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*VLLM], None),
        ([*VLLM, "--plugin"], ""),
        ([*VLLM, "--plugin", "--port", "1"], ""),
        ([*VLLM, "--plugin", "amdopt"], "amdopt"),
        ([*VLLM, "--plugin=attention,gemm", "--port", "1"], "attention,gemm"),
        ([*VLLM, "--plugin", "off", "--port", "1"], "off"),
        ([*VLLM, "--", "--plugin", "amdopt"], None),
        (["/x/vllm/entrypoints/openai/api_server.py", "--plugin", "mla"], "mla"),
        (["my_program.py", "--plugin", "other"], None),
        (["/usr/bin/pytest", "--plugin=x"], None),
        ([], None),
    ],
)
def test_find_plugin_argument(arguments: list[str], expected: str | None) -> None:
    assert plugin.find_plugin_argument(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*VLLM, "--plugin", "off", "--port", "1"], [*VLLM, "--port", "1"]),
        ([*VLLM, "--plugin=off"], VLLM),
        ([*VLLM, "--port", "1"], [*VLLM, "--port", "1"]),
    ],
)
def test_remove_plugin_argument(arguments: list[str], expected: list[str]) -> None:
    plugin.remove_plugin_argument(arguments)
    assert arguments == expected


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As at the start of a process: nothing decided, no variables of ours."""
    monkeypatch.setattr(plugin, "_outcome", plugin._Outcome())
    for name in [name for name in os.environ if name.startswith("VLLM_AMDOPT")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.setattr(sys, "argv", ["program"])
    # The tests' own sitecustomize has raised the thresholds already.
    thresholds = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    quick_imports.end()
    gc.set_threshold(*thresholds)


def other_platform(monkeypatch: pytest.MonkeyPatch, answer: str | None) -> None:
    """Another platform plugin is installed, called atom, and answers like this when asked."""

    class Other(EntryPoint):
        def load(self) -> Any:
            return lambda: answer

    group = plugin.PLATFORM_GROUP
    entries = [
        Other("atom", "atom.plugin:register_platform", group),
        EntryPoint("amdopt", "vllm_amdopt.integration.plugin:register_platform", group),
    ]
    monkeypatch.setattr(plugin, "entry_points", lambda group: entries)


@pytest.mark.usefixtures("fresh")
class TestRegisterPlatform:
    def test_without_amd_gpu_and_wish_vllm_is_left_alone(self) -> None:
        assert plugin.register_platform() is None

    def test_on_request_the_cpu_platform_is_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLLM_AMDOPT", "1")
        assert plugin.register_platform() == plugin.PLATFORM_CLASSES["cpu"]

    def test_the_collector_looks_away_until_vllm_is_imported(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VLLM_AMDOPT", "1")
        before = gc.get_threshold()
        plugin.register_platform()
        assert gc.get_threshold() == quick_imports.THRESHOLDS
        plugin.register()
        assert gc.get_threshold() == before

    @pytest.mark.parametrize(
        "variables",
        [{"VLLM_AMDOPT": "0"}, {"VLLM_AMDOPT": "1", "VLLM_AMDOPT_QUICK_IMPORTS": "0"}, {}],
        ids=["off", "switched_off", "not_active"],
    )
    def test_the_collector_is_left_alone(
        self, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        before = gc.get_threshold()
        plugin.register_platform()
        assert gc.get_threshold() == before

    def test_off_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLLM_AMDOPT", "0")
        assert plugin.register_platform() is None

    def test_plugin_argument_becomes_the_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", [*VLLM, "--plugin", "gemm,attention"])
        monkeypatch.setenv("VLLM_AMDOPT", "0")
        assert plugin.register_platform() == plugin.PLATFORM_CLASSES["cpu"]
        assert os.environ["VLLM_AMDOPT"] == "attention,gemm"

    def test_plugin_off_is_taken_off_the_command_line(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = [*VLLM, "--plugin", "off"]
        monkeypatch.setattr(sys, "argv", arguments)
        assert plugin.register_platform() is None
        assert os.environ["VLLM_AMDOPT"] == "0"
        assert arguments == VLLM

    def test_unknown_feature_ends_with_one_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", [*VLLM, "--plugin", "atention"])
        with pytest.raises(SystemExit, match="did you mean attention"):
            plugin.register_platform()

    def test_bad_variable_is_stock_with_one_sentence(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("VLLM_AMDOPT_GEMM", "yse")
        monkeypatch.setenv("VLLM_AMDOPT", "1")
        assert plugin.register_platform() is None
        plugin.register()
        output = caplog.text
        assert output.count("VLLM_AMDOPT_GEMM") == 1
        assert len(caplog.records) == 1
        assert "yes" in output

    def test_bad_variable_is_an_error_when_strict(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLLM_AMDOPT_GEMM", "yse")
        monkeypatch.setenv("VLLM_AMDOPT_STRICT", "1")
        with pytest.raises(SystemExit, match="VLLM_AMDOPT_GEMM"):
            plugin.register_platform()

    def test_steps_aside_for_another_active_platform_plugin(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        other_platform(monkeypatch, "atom.platform.ATOMPlatform")
        monkeypatch.setattr(plugin, "_active_builtin", lambda probes: "rocm")
        caplog.set_level(logging.INFO, "vllm.amdopt")
        assert plugin.register_platform() is None
        output = caplog.text
        assert output.count("steps aside") == 1
        assert "'atom'" in output and "VLLM_PLUGINS=amdopt" in output

    def test_ignores_a_platform_plugin_that_is_not_active(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other_platform(monkeypatch, None)
        monkeypatch.setenv("VLLM_AMDOPT", "1")
        assert plugin.register_platform() == plugin.PLATFORM_CLASSES["cpu"]

    def test_ignores_a_platform_plugin_that_the_user_shut_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other_platform(monkeypatch, "atom.platform.ATOMPlatform")
        monkeypatch.setenv("VLLM_PLUGINS", "amdopt")
        monkeypatch.setenv("VLLM_AMDOPT", "1")
        assert plugin.register_platform() == plugin.PLATFORM_CLASSES["cpu"]

    def test_a_platform_of_ours_that_cannot_be_imported_is_stock(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(qualname: str) -> None:
            raise ImportError("broken on purpose")

        monkeypatch.setattr(plugin, "_import_class", fail)
        monkeypatch.setenv("VLLM_AMDOPT", "1")
        assert plugin.register_platform() is None
        assert "broken on purpose" in caplog.text

    def test_switches_are_known_to_vllm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import vllm.envs

        from vllm_amdopt.policy.switches import SWITCHES

        plugin.register_platform()
        monkeypatch.setenv("VLLM_AMDOPT_GEMM", "off")
        assert {switch.name for switch in SWITCHES} <= set(vllm.envs.environment_variables)
        assert vllm.envs.environment_variables["VLLM_AMDOPT_GEMM"]() == "off"
        assert vllm.envs.compile_factors()["VLLM_AMDOPT_GEMM"] == "off"


def run_vllm(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The `vllm` command of this environment, to its end."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
    return subprocess.run(
        [str(Path(sys.executable).with_name("vllm")), *arguments],
        capture_output=True,
        text=True,
        env={**environment, "HF_HUB_OFFLINE": "1", **variables},
        timeout=300,
    )


def test_plugin_argument_is_an_error_where_the_platform_is_not_ours() -> None:
    """VLLM_TARGET_DEVICE=cpu keeps platform plugins out; stock must not serve in silence."""
    result = run_vllm("serve", "no-such-model", "--plugin", "amdopt", VLLM_TARGET_DEVICE="cpu")
    assert result.returncode != 0
    assert "vllm-amdopt: --plugin was given, but the plugin is not active" in result.stderr
    assert "unset VLLM_TARGET_DEVICE" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_of_vllm_serve_shows_the_option() -> None:
    result = run_vllm("serve", "--help=plugin", "--plugin", "amdopt")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "--plugin" in result.stdout and "VLLM_AMDOPT" in result.stdout
