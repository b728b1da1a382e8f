"""`accuracy logits` as a whole on real vLLM and the smallest model, in float32: the plugin passes,
an attention that is wrong by 1 % fails.

The kernels run as their plain-PyTorch references, which is a matter of seconds; docs/accuracy.md
says what emulated machine code gave.
"""

from __future__ import annotations

import os

import pytest

from tests.integration.offline import GQA, MODELS
from tests.models.tasks import held_out
from tests.serving import CACHES, QUIET_ENVIRONMENT
from vllm_amdopt.accuracy import logits
from vllm_amdopt.accuracy.cells import parse_cells
from vllm_amdopt.accuracy.records import logits_record
from vllm_amdopt.bench.plan import Arm
from vllm_amdopt.run_record import as_json, parse

PLUGIN = {"VLLM_AMDOPT": "1", "VLLM_AMDOPT_CPU_ENGINE": "reference"}
FAULT = {"VLLM_AMDOPT_INJECT_FAULT": "attention_forward:scale=1.01"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> logits.LogitsResult:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    settings = logits.Settings(
        model=str(MODELS / GQA),
        arms=(
            Arm("stock", {"VLLM_AMDOPT": "0"}),
            Arm("plugin", PLUGIN),
            Arm("wrong", {**PLUGIN, **FAULT}),
        ),
        # The long prompt is cut into chunks of 64 tokens while the others decode.
        cells=parse_cells("1x24,4x64+2x150,1x600"),
        tokens=15,
        top=16,
        prompts=tuple(item.prompt for item in held_out("recall", 12)),
        serve_args=(
            "--dtype", "float32", "--enforce-eager", "--max-model-len", "512",
            "--kv-cache-memory-bytes", "64M", "--max-num-batched-tokens", "64",
        ),
        seconds=600.0,
        folder=tmp_path_factory.mktemp("logits"),
        environment={
            **inherited,
            **QUIET_ENVIRONMENT,
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CACHE_ROOT": str(CACHES / "vllm"),
        },
    )  # fmt: skip
    return logits.compare_arms(settings, lambda _: None)


def test_every_position_was_measured_and_a_cell_that_does_not_fit_was_left_out(
    result: logits.LogitsResult,
) -> None:
    assert result.invalid == ""
    assert result.first is not None
    assert {cell: len(sequences) for cell, sequences in result.first.cells.items()} == {
        "1x24": 1,
        "4x64+2x150": 6,
    }
    assert (
        "615 tokens do not fit this engine's max_model_len of 512"
        in (result.first.unsupported["1x600"])
    )
    assert all(len(one) == 15 for cell in result.first.cells.values() for one in cell)
    assert (result.dtype, result.first.engine["runner"]) == ("float32", "v1")


def test_two_launches_of_stock_hardly_differ(result: logits.LogitsResult) -> None:
    assert {how: one["all"].positions for how, one in result.floor.items()} == {
        "again": 105,
        "doubled": 105,
    }
    assert max(one["all"].kl_mean for one in result.floor.values()) < result.limits.mean_kl


def test_the_plugin_passes_and_one_percent_fails(result: logits.LogitsResult) -> None:
    plugin, wrong = result.others
    assert plugin.invalid == "" and plugin.verdict is not None
    assert plugin.verdict.findings == ()
    assert plugin.replay is not None and "attention" in plugin.replay.treatment.working
    assert 0.0 < plugin.compared["all"].kl_mean < result.limits.mean_kl
    assert wrong.verdict is not None and wrong.verdict.outcome == "failed"
    assert wrong.replay is not None and "WRONG on purpose" in wrong.replay.wrong
    assert result.exit_code() == 1


def test_the_record_holds_it_all(result: logits.LogitsResult) -> None:
    record = logits_record(result, machine={}, software={}, commands=("again",))
    assert record == parse(as_json(record), "a copy")
    names = ["stock", "stock again", "stock doubled", "plugin", "wrong"]
    assert [arm.name for arm in record.arms] == names
    rows = {(row.arm, row.level["cell"]): row for row in record.rows}
    assert rows["plugin", "all"].metrics["positions"] == 105
    assert rows["wrong", "all"].metrics["kl_mean"] > rows["plugin", "all"].metrics["kl_mean"]
    assert rows["stock", "1x600"].status == "unsupported"
    assert record.conclusion is not None and record.conclusion.outcome == "failed"
    assert {len(row) for row in record.tables[0].rows} == {len(logits.HEAD)}
