"""The tables that people read, and the pages in docs/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.policy.situations import CURRENT_AITER, VIRTUAL, instinct, plan
from vllm_amdopt import __version__
from vllm_amdopt.policy.render import (
    PAGES,
    concerns_the_user,
    render_features,
    render_plan_table,
    rules_page,
    settings_text,
    switches_page,
)
from vllm_amdopt.policy.serving_rules import ENTRIES
from vllm_amdopt.policy.switches import SWITCHES
from vllm_amdopt.policy.text_tables import WIDTH

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"model": "llama-3.1-8b", "hardware": VIRTUAL}, id="virtual"),
        pytest.param({"model": "kimi-k2.5", "hardware": instinct()}, id="MI300X"),
        pytest.param({"model": None, "hardware": instinct("gfx1100")}, id="RDNA"),
        pytest.param(
            {
                "model": "minimax-m2",
                "hardware": instinct("gfx950"),
                "aiter": CURRENT_AITER,
                "tensor_parallel_size": 8,
                "environment": {"VLLM_AMDOPT": "attention,mla,kv_offload"},
                "vllm": "0.99.0",
            },
            id="everything long",
        ),
    ],
)
@pytest.mark.parametrize("width", [80, WIDTH])
def test_plan_table_fits_and_tells_all(options: dict[str, Any], width: int) -> None:
    made = plan(**options)
    table = render_plan_table(made, width)
    lines = table.splitlines()
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if line != line.rstrip()]
    assert __version__ in lines[0]
    assert made.digest in lines[0]
    states = [line.split()[:3] for line in lines if line.split()[1:2] in (["on"], ["off"])]
    shown = [d for d in made.decisions if concerns_the_user(d)]
    assert {d.name for d in made.decisions if d.kind == "feature" or d.on} <= {
        d.name for d in shown
    }
    assert states == [[d.name, "on" if d.on else "off", d.origin] for d in shown]
    text = " ".join(table.split())
    for decision in made.decisions:
        assert decision.name in text
    for label, sentences in (
        ("warning", made.warnings),
        ("note", made.notes),
        ("refused", made.refusals),
    ):
        for sentence in sentences:
            assert f"{label}: {sentence}" in text
    assert "warning" not in render_plan_table(made, width, warnings=False)


def test_plan_table_reads_like_this() -> None:
    made = plan("deepseek-v3", instinct(), aiter=CURRENT_AITER, tensor_parallel_size=8)
    lines = render_plan_table(made).splitlines()
    assert lines[0] == (
        f"vllm-amdopt {__version__}: plan {made.digest} for AMD gfx942 "
        "(MI300X, MI325X, MI300A, MI308X), vLLM 0.32.0"
    )
    assert lines[1].startswith("model DeepseekV3ForCausalLM: MLA, 128 heads")
    assert lines[2].split() == ["name", "state", "by", "what", "is", "set,", "and", "why"]
    start = next(i for i, line in enumerate(lines) if line.startswith("mla_block_size"))
    end = next(i for i, line in enumerate(lines) if line.startswith("kv_offload"))
    assert " ".join(" ".join(lines[start:end]).split()) == (
        "mla_block_size on default block_size=1; MLA decode kernels read the cache token by token; "
        "since vLLM 0.30 the AITER backend takes any size and expands the page table itself, so "
        "there block size 1 saves that step and is not required (reported in arXiv 2603.10031 "
        "(MI325X, vLLM 0.14.1); "
        "near-identical speed since)"
    )


def test_settings_text() -> None:
    assert settings_text({"block_size": 1, "env.A": "1", "kv_offloading_size": 64.0}) == (
        "block_size=1, A=1, kv_offloading_size=64"
    )


def test_features_list_names_everything() -> None:
    text = render_features()
    assert max(map(len, text.splitlines())) <= WIDTH
    for entry in ENTRIES:
        assert f"{entry.name}  [{entry.switch}=auto|on|off" in text
    for name in ("VLLM_AMDOPT_STRICT", "VLLM_AMDOPT_CPU_ENGINE", "gfx942"):
        assert name in text


def test_pages_name_everything() -> None:
    switches, rules = switches_page(), rules_page()
    for switch in SWITCHES:
        assert f"| `{switch.name}` |" in switches
    for entry in ENTRIES:
        assert f"### {entry.name}\n" in rules
        assert entry.remove_when in rules
        assert str(entry.evidence) in rules


@pytest.mark.parametrize("page", PAGES)
def test_page_is_fresh(page: str) -> None:
    written = (ROOT / page).read_text(encoding="utf-8")
    assert written == PAGES[page](), "run `vllm-amdopt docs --write`"
