"""Published models on simulated MI300X and MI355X machines: vLLM's choices, stock and with ours.

Only configuration and selection run, no kernel. Here: every model, tensor parallel 8, AITER
installed; `make fleet` runs every combination and writes docs/fleet.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fleet import models, page, rig
from tests.fleet.rig import Combination, Fleet
from vllm_amdopt.policy.versions import contains

NARROW_SHARDS = {
    "minimax-m2",
    "minimax-m2.5",
    "qwen3-235b-a22b-fp8",
    "qwen3-30b-a3b-fp8",
}
"""Block-FP8 models of experts whose shard at tensor parallel 8 is not whole blocks of 128."""

NOT_STARTED = {
    "llama-3.1-405b-fp8-meta": "--allow-deprecated-quantization",
}
"""Models that no arm starts, and what vLLM's sentence asks for."""


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return rig.run(models.published(), rig.machines(aiter=(True,)), (8,))


def arm(fleet: Fleet, name: str) -> Iterator[tuple[Combination, dict[str, Any]]]:
    """The records of one arm."""
    return ((c, r) for c, r in fleet.records.items() if c.machine.arm == name)


def test_vllm_runs_on_its_rocm_platform_and_on_ours(fleet: Fleet) -> None:
    platforms = {
        (combination.machine.arm, record["platform"])
        for combination, record in fleet.records.items()
        if "platform" in record
    }
    assert platforms == {
        ("stock", "RocmPlatform"),
        ("stock, AITER=1", "RocmPlatform"),
        ("plugin", "AmdOptRocmPlatform"),
    }


def test_every_model_starts_with_the_plugin(fleet: Fleet) -> None:
    ended = {
        (c.model, c.machine.gfx): record["error"]
        for c, record in arm(fleet, "plugin")
        if record["outcome"] != "ok" and c.model not in NOT_STARTED
    }
    assert ended == {}


@pytest.mark.parametrize("name", rig.ARMS)
def test_what_vllm_itself_does_not_take_ends_in_its_own_words(fleet: Fleet, name: str) -> None:
    for combination, record in arm(fleet, name):
        if combination.model in NOT_STARTED:
            assert record["outcome"] == "error"
            assert NOT_STARTED[combination.model] in record["error"]


def test_stock_starts_what_the_plugin_starts(fleet: Fleet) -> None:
    ended = [c for c, record in arm(fleet, "stock") if record["outcome"] != "ok"]
    assert {c.model for c in ended} == set(NOT_STARTED)


def test_stock_with_aiter_ends_where_a_shard_is_not_whole_blocks(fleet: Fleet) -> None:
    ended = {
        c.model: record["error"]
        for c, record in arm(fleet, "stock, AITER=1")
        if record["outcome"] != "ok" and c.model not in NOT_STARTED
    }
    assert set(ended) == NARROW_SHARDS
    for error in ended.values():
        assert "FP8 MoE backend AITER does not support" in error


def test_of_what_a_source_calls_slower_or_wrong_only_the_explained_is_left(fleet: Fleet) -> None:
    left = {
        (number, c.model)
        for number, finding in enumerate(page.FINDINGS)
        for c, record in arm(fleet, "plugin")
        if record["outcome"] == "ok" and finding.found(c, record)
    }
    older = set() if contains(">=0.32", fleet.vllm) else page.LEFT_BEFORE_0_32
    assert left == set(page.LEFT) | older


@pytest.mark.parametrize("name", ["stock", "stock, AITER=1", "plugin"])
def test_vllm_selects_what_the_policy_predicts(fleet: Fleet, name: str) -> None:
    compared = 0
    for combination, record in arm(fleet, name):
        predicted = record.get("predicted")
        if predicted is None:  # vLLM made no configuration
            assert combination.model in NOT_STARTED
            continue
        if record["outcome"] != "ok":
            assert predicted["experts_raise"] or predicted["attention_raises"], combination
            continue
        found = {
            "attention": page.attention(record) - {"GDN_ATTN"},
            "experts": set(record["moe"]),
            "block_size": {record["block_size"]},
        }
        assert not predicted["experts_raise"], combination
        assert not predicted["attention_raises"], combination
        for what, names in found.items():
            if predicted[what] is not None:
                assert names == {predicted[what]}, (combination, what)
                compared += 1
    assert compared > 100


def test_every_finding_is_seen_in_stock_vllm(fleet: Fleet) -> None:
    """A finding that vLLM no longer has is to be taken off the page, and its rule looked at."""
    for finding in page.FINDINGS:
        assert any(
            finding.found(c, record) for c, record in fleet.records.items() if "plan" not in record
        ), finding.title


def test_what_is_written_on_the_page_can_be_read_back(fleet: Fleet) -> None:
    stated = page.stated(page.render(fleet))
    assert stated == {
        page.place(combination): page.cells(fleet, combination)
        for combination, _ in arm(fleet, "plugin")
    }


def test_the_page_is_current(fleet: Fleet) -> None:
    stated = page.stated(page.PAGE.read_text(encoding="utf-8"))
    assert f"vLLM {fleet.vllm} " in page.PAGE.read_text(encoding="utf-8")
    for combination, record in arm(fleet, "plugin"):
        assert stated[page.place(combination)] == page.cells(fleet, combination), (
            f"{combination.model}: `make fleet` renews docs/fleet.md ({record['outcome']})"
        )


def test_the_fusions_that_are_asked_for_survive_vllms_own_checks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM drops a fusion, with a warning, where the graph or an operation would not allow it."""
    asked = {"VLLM_AMDOPT": "1", "VLLM_AMDOPT_ATTENTION": "on", "VLLM_AMDOPT_FUSED_ROPE": "on"}
    monkeypatch.setitem(rig.ARMS, "fused", asked)
    qwen = {"qwen3-8b": models.published()["qwen3-8b"]}
    (record,) = rig.run(
        qwen, rig.machines(("gfx942",), (False,), ("fused",)), (1,)
    ).records.values()
    assert record["outcome"] == "ok", record
    assert {"fuse_rope_kvcache", "fuse_qk_norm_rope_kvcache"} <= set(record["fusions"])
    assert "+rotary_embedding" in record["custom_ops"]
