"""Plans: what the user writes, the order of launches, the seeds, and the published loads."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_amdopt.bench.ablation import ablation_arms, chosen_features
from vllm_amdopt.bench.load import bench_arguments
from vllm_amdopt.bench.plan import (
    Arm,
    Level,
    Plan,
    PlanError,
    make_levels,
    parse_arm,
    parse_claim,
    parse_duration,
    parse_share,
    parse_slo,
    parse_workload,
    words,
)
from vllm_amdopt.bench.presets import PLACES, preset, read_presets

LEVEL = Level("random", 8, 4, concurrency=2, prompts=4, warmup_prompts=2)


def plan(**changes: object) -> Plan:
    values: dict[str, object] = {
        "kind": "serving_ab",
        "model": "m",
        "arms": (Arm("a"), Arm("b")),
        "levels": (LEVEL,),
        "blocks": 6,
    }
    return Plan(**{**values, **changes})  # type: ignore[arg-type]


def test_blocks_alternate_so_that_a_drift_meets_both_arms_alike() -> None:
    made = plan()
    assert [made.order_name(block) for block in range(4)] == ["AB", "BA", "AB", "BA"]
    three = plan(arms=(Arm("a"), Arm("b"), Arm("c")))
    assert [three.order_name(block) for block in range(2)] == ["ABC", "CBA"]
    # Places of an arm in the run, summed over a pair of blocks, are the same for both.
    places = {0: 0, 1: 0}
    for block in range(2):
        for position, arm in enumerate(made.order(block)):
            places[arm] += 2 * block + position
    assert places[0] == places[1]


def test_prompts_are_alike_in_a_block_and_new_in_the_next() -> None:
    made = plan()
    seeds = [made.request_seed(block, LEVEL, 0) for block in range(20)]
    assert len(set(seeds)) == 20 and all(0 <= seed < 2**31 for seed in seeds)
    assert made.request_seed(0, LEVEL, 0) == plan().request_seed(0, LEVEL, 0)
    assert made.request_seed(0, LEVEL, 0, warmup=True) != seeds[0]
    levels = tuple(replace(LEVEL, concurrency=count) for count in range(1, 9))
    many = plan(levels=levels)
    assert sorted(many.levels_of(0), key=lambda level: level.concurrency or 0) == list(levels)
    assert many.levels_of(0) != many.levels_of(1)


def test_digest_is_that_of_the_plan_and_nothing_else() -> None:
    assert plan().digest == plan().digest
    assert plan(blocks=7).digest != plan().digest


def test_arm_is_read() -> None:
    arm = parse_arm("plugin:VLLM_AMDOPT=1,LIST=a,b,EMPTY=", "--enforce-eager -tp 2")
    assert arm.name == "plugin"
    assert arm.environment == {"VLLM_AMDOPT": "1", "LIST": "a,b", "EMPTY": ""}
    assert arm.serve_arguments == ("--enforce-eager", "-tp", "2")
    assert arm.plugin_wanted is True
    assert parse_arm("stock:VLLM_AMDOPT=0").plugin_wanted is False
    assert parse_arm("plain").plugin_wanted is None


def test_loads_are_made() -> None:
    levels = make_levels([parse_workload("random:100/20~0.2")], [1, 16], [2.5])
    assert [level.label for level in levels] == [
        "random:100/20@1",
        "random:100/20@16",
        "random:100/20@2.5 requests/s",
    ]
    assert [level.prompts for level in levels] == [10, 160, 75]
    assert [level.warmup_prompts for level in levels] == [2, 32, 10]
    assert len({level.file_stem for level in levels}) == 3
    own = parse_workload("custom:0/64@/data/prompts.jsonl")
    assert own.dataset_path == "/data/prompts.jsonl"


def test_load_generator_gets_what_the_load_says() -> None:
    common = {"base_url": "http://x", "served_name": "n", "tokenizer": "t", "seed": 5}
    arguments = " ".join(bench_arguments(LEVEL, prompts=4, **common))  # type: ignore[arg-type]
    assert "--random-input-len 8 --random-output-len 4 --num-prompts 4 --seed 5" in arguments
    assert "--max-concurrency 2" in arguments and "--request-rate" not in arguments
    assert "--temperature 0" in arguments and "--ignore-eos" in arguments
    rate = replace(LEVEL, concurrency=None, request_rate=2.0, range_ratio=0.5)
    arguments = " ".join(bench_arguments(rate, prompts=4, **common))  # type: ignore[arg-type]
    assert "--request-rate 2" in arguments and "--max-concurrency" not in arguments
    assert "--random-range-ratio 0.5" in arguments
    own = replace(LEVEL, dataset="custom", dataset_path="/f")
    arguments = " ".join(bench_arguments(own, prompts=4, **common))  # type: ignore[arg-type]
    assert "--dataset-path /f --custom-output-len 4" in arguments


def test_times_shares_and_limits_are_read() -> None:
    assert [parse_duration(t, "--x") for t in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    assert parse_share("1%", "--margin") == parse_share("0.01", "--margin") == 0.01
    assert parse_slo("itl_p99=50,ttft_mean=2000") == {"p99_itl_ms": 50, "mean_ttft_ms": 2000}
    assert parse_claim("p99_itl_ms@64", "--gate") == "p99_itl_ms@64"


REFUSALS = [
    pytest.param(lambda: parse_arm("a b:X=1"), "an arm is NAME:VARIABLE=VALUE", id="arm-name"),
    pytest.param(lambda: parse_arm("a:1=2"), "'1=2' is not VARIABLE=VALUE", id="variable"),
    pytest.param(lambda: parse_arm("a:X=1,X=2"), "X is set twice", id="twice"),
    pytest.param(lambda: words("'", "--serve-args"), "cannot be split", id="quotes"),
    pytest.param(lambda: parse_workload("random:8"), "DATASET:INPUT/OUTPUT", id="workload"),
    pytest.param(lambda: parse_workload("random:8/0"), "at least one token", id="no-tokens"),
    pytest.param(lambda: parse_workload("custom:0/8"), "custom needs its file", id="no-file"),
    pytest.param(lambda: make_levels([LEVEL], [0], []), "counts from 1", id="concurrency"),
    pytest.param(lambda: make_levels([LEVEL], [], [0.0]), "more than 0", id="rate"),
    pytest.param(lambda: make_levels([LEVEL], [1], [], prompts=0), "--prompts", id="prompts"),
    pytest.param(lambda: parse_duration("2 days", "--budget"), "--budget '2 days'", id="time"),
    pytest.param(lambda: parse_share("150%", "--margin"), "below 100%", id="share"),
    pytest.param(lambda: parse_share("x", "--margin"), "write a share", id="no-share"),
    pytest.param(lambda: parse_slo("itl=50"), "write for example itl_p99=50", id="slo"),
    pytest.param(lambda: parse_claim("a b", "--gate"), "--gate: 'a b' is no metric", id="claim"),
    pytest.param(lambda: plan(levels=()), "no load to measure", id="no-load"),
    pytest.param(lambda: plan(blocks=0), "count from 1", id="no-block"),
    pytest.param(lambda: plan(arms=(Arm("a"), Arm("a"))), "two arms are called 'a'", id="names"),
    pytest.param(lambda: plan(levels=(LEVEL, LEVEL)), "is given twice", id="same-load"),
    pytest.param(
        lambda: plan(primary="output_throughput@3"), "names the load 3", id="claim-without-load"
    ),
    pytest.param(lambda: preset("none"), "is not known; there are", id="preset"),
    pytest.param(lambda: chosen_features("x"), "there is no feature 'x'", id="feature"),
]


@pytest.mark.parametrize(("make", "sentence"), REFUSALS)
def test_mistake_is_a_sentence(make: object, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        make()  # type: ignore[operator]


def test_presets_hold_what_their_sources_say() -> None:
    presets = read_presets()
    assert {"paiton-8b", "paiton-405b", "dstack-405b", "arch-study", "sglang-dsr1"} <= set(presets)
    assert [level.concurrency for level in presets["paiton-8b"].levels] == [16, 32, 64, 128, 256]
    (tp8,) = presets["paiton-405b"].levels
    assert tp8.concurrency == 32 and presets["paiton-405b"].blocks == 10
    assert presets["paiton-405b"].serve_arguments == ("--tensor-parallel-size", "8")
    rates = [
        (level.request_rate, level.prompts)
        for level in presets["dstack-405b"].levels
        if level.request_rate
    ]
    assert rates[:5] == [(1, 30), (2, 60), (3, 90), (4, 120), (5, 150)]
    assert all(
        level.drops_allowed == (level.request_rate is not None)
        for level in presets["dstack-405b"].levels
    )
    assert rates[5:] == [(1, 300), (2, 600), (3, 900)]
    assert max(level.input_len for level in presets["dstack-405b"].levels) == 10_000
    study = presets["arch-study"]
    assert study.blocks == 5
    stress = [level for level in study.levels if level.input_len == 500]
    assert (stress[0].concurrency, stress[-1].concurrency) == (10, 1000)
    assert all(level.prompts == 3 * (level.concurrency or 0) for level in stress)
    dsr1 = presets["sglang-dsr1"]
    assert dsr1.slo == {"mean_itl_ms": 50}
    assert {(level.input_len, level.output_len, level.prompts) for level in dsr1.levels} == {
        (3200, 800, 500)
    }
    assert [level.concurrency for level in dsr1.levels] == [1, 2, 4, 8, 16, 32, 64, 128]


def test_presets_travel_in_the_wheel() -> None:
    root = Path(__file__).resolve().parents[2]
    build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    source = "benchmarks/workloads.toml"
    target = build["targets"]["wheel"]["force-include"][source]
    assert (root / source) == PLACES[1] and (root / target) == PLACES[0]
    assert (root / source).is_file()


@pytest.mark.parametrize("name", sorted(read_presets()))
def test_preset_is_a_plan(name: str) -> None:
    chosen = read_presets()[name]
    made = plan(
        levels=chosen.levels, primary=chosen.primary, gated=chosen.gated, blocks=chosen.blocks
    )
    assert made.digest and chosen.source and chosen.description


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param("", "'presets'", id="empty"),
        pytest.param("x = ", "Invalid value", id="not-toml"),
        pytest.param(
            '[presets.a]\ndescription="d"\nsource="s"\nloads=[{workloads=["random:1/1"], nope=1}]',
            "unknown key nope",
            id="load-key",
        ),
        pytest.param(
            '[presets.a]\nnope=1\nloads=[{workloads=["random:1/1"], concurrency=[1]}]',
            "unknown key nope",
            id="key",
        ),
    ],
)
def test_broken_presets_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "workloads.toml"
    path.write_text(text)
    with pytest.raises(PlanError, match=complaint):
        read_presets(path)


def test_ablation_has_an_arm_for_each_feature() -> None:
    arms = ablation_arms(("attention", "gemm"), "alone")
    assert [arm.name for arm in arms] == ["none", "only-attention", "only-gemm"]
    only = arms[1]
    assert only.environment == {
        "VLLM_AMDOPT": "1",
        "VLLM_AMDOPT_ATTENTION": "on",
        "VLLM_AMDOPT_GEMM": "off",
    }
    assert only.expected_features == ("attention",) and only.unwanted_features == ("gemm",)
    but_one = ablation_arms(("attention", "gemm"), "all-but-one")
    assert [arm.name for arm in but_one] == ["all", "all-but-attention", "all-but-gemm"]
    assert but_one[1].environment["VLLM_AMDOPT_GEMM"] == "on"
    both = ablation_arms(("attention", "gemm"), "both")
    assert [arm.name for arm in both][:4] == ["none", "only-attention", "only-gemm", "all"]
    assert [arm.name for arm in ablation_arms(("gemm",), "both")] == ["none", "only-gemm"]
    assert len(ablation_arms(chosen_features(None), "both")) == 2 * len(chosen_features(None)) + 2
