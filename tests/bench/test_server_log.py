"""What a server's log and metrics are taken for: causes, refusals, compilation, the treatment."""

from __future__ import annotations

import pytest

from tests.policy.situations import instinct, plan
from vllm_amdopt.bench.gates import (
    RunEvidence,
    cache_hit_share,
    ceiling_warning,
    evidence_metrics,
    run_problem,
    taint_unequal_work,
)
from vllm_amdopt.bench.plan import Arm
from vllm_amdopt.bench.server import (
    cause,
    compilations,
    launch_facts,
    read_metrics,
    refusal,
)
from vllm_amdopt.bench.treatment import (
    Treatment,
    pattern_problem,
    read_treatment,
    treatment_problem,
)

PREFIX = "(APIServer pid=1) INFO 11-26 15:00:00 [vllm.py:1] "


@pytest.mark.parametrize(
    ("log", "said"),
    [
        pytest.param(
            "x\nRuntimeError: the first\nValueError: on the way out\n",
            "RuntimeError: the",
            id="first",
        ),
        pytest.param(
            "(pid=1) torch.OutOfMemoryError: 3 GiB\n", "torch.OutOfMemoryError: 3", id="module"
        ),
        pytest.param("a\nlast words\n\n", "last words", id="last-line"),
        pytest.param("", "it wrote nothing", id="empty"),
        pytest.param("OSError: [Errno 28] No space left on device\nx", "--resume", id="disk"),
        pytest.param(
            "KeyError: x\nvllm-amdopt: this cannot run; set X=1\n", "this cannot run", id="refusal"
        ),
    ],
)
def test_cause_of_a_server_that_ended(log: str, said: str) -> None:
    assert said in cause(log)


def test_refusal_is_the_plugins_own_sentence_at_the_end() -> None:
    assert refusal("x\nvllm-amdopt: set X=1\n") == "vllm-amdopt: set X=1"
    assert refusal("vllm-amdopt: set X=1\n" + "more\n" * 9) is None
    assert (
        refusal("WARNING vllm-amdopt: mla is switched off and vLLM goes on without it: y") is None
    )
    assert refusal(PREFIX + "vllm-amdopt: note") is None


def test_memory_of_a_launch_by_the_names_of_reports() -> None:
    log = (
        f"{PREFIX}Model loading took 13.5 GiB memory and 3.2 seconds\n"
        f"{PREFIX}Available KV cache memory: 120.25 GiB\n"
        f"{PREFIX}GPU KV cache size: 1,234,567 tokens\n"
    )
    assert launch_facts(log) == {
        "weights_gib": 13.5,
        "kv_cache_gib": 120.25,
        "kv_cache_tokens": 1234567.0,
    }
    assert launch_facts("") == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        pytest.param("Triton kernel JIT compilation during inference: _fwd.", True, id="triton"),
        pytest.param("[aiter] start build [module_rmsnorm] under /x", True, id="aiter"),
        pytest.param("torch.compile took 12.3 s in total", True, id="compile"),
        pytest.param("Engine 000: Avg prompt throughput: 3.4 tokens/s", False, id="statistics"),
        pytest.param("[aiter] import [module_rmsnorm] under /x", False, id="aiter-import"),
    ],
)
def test_compilation_is_noticed(line: str, found: bool) -> None:
    assert bool(compilations(PREFIX + line)) is found


def test_metrics_are_summed_over_their_labels() -> None:
    text = (
        "# HELP vllm:x help\n"
        'vllm:x_total{engine="0"} 3.0\nvllm:x_total{engine="1"} 4.5\n'
        "plain 2e3\nbroken{ 1\nvllm:y NaN\n"
    )
    totals = read_metrics(text)
    assert totals["vllm:x_total"] == 7.5 and totals["plain"] == 2000.0
    assert "broken" not in totals


# --- gates --------------------------------------------------------------------------------------


def test_gates_of_a_run() -> None:
    before = {"vllm:prefix_cache_queries_total": 100.0, "vllm:prefix_cache_hits_total": 10.0}
    after = {"vllm:prefix_cache_queries_total": 300.0, "vllm:prefix_cache_hits_total": 11.0}
    clean = RunEvidence(before, after, client_share=0.3)
    assert run_problem(clean) is None
    assert cache_hit_share(clean) == 0.005
    assert evidence_metrics(clean) == {"client_share": 0.3, "prefix_cache_hit_share": 0.005}
    warm = RunEvidence(before, {**after, "vllm:prefix_cache_hits_total": 60.0})
    assert "25.0% of the prompt tokens" in (run_problem(warm) or "")
    assert run_problem(RunEvidence({}, {})) is None
    assert "used 90% of a core" in (run_problem(RunEvidence({}, {}, client_share=0.9)) or "")
    assert run_problem(RunEvidence({}, {}, foreign=["process 9 was seen"])) == "process 9 was seen"


def row(arm: str, tokens: float, status: str = "ok") -> dict[str, object]:
    metrics = {"total_output_tokens": tokens, "total_input_tokens": 5.0}
    return {"arm": arm, "level": {}, "repetition": 0, "status": status, "metrics": metrics}


def test_arms_must_have_done_the_same_work() -> None:
    rows = [row("a", 10), row("b", 10)]
    taint_unequal_work(rows)
    assert [r["status"] for r in rows] == ["ok", "ok"]
    rows = [row("a", 10), row("b", 9), row("c", 3, "error")]
    taint_unequal_work(rows)
    assert [r["status"] for r in rows] == ["tainted", "tainted", "error"]
    assert rows[0]["reason"] == "the arms' answers have unequal numbers of tokens: a 10, b 9"


def test_measurement_near_the_clients_ceiling_is_said() -> None:
    assert ceiling_warning(1000, 3000) is None and ceiling_warning(0, 1) is None
    assert "only 2.0 times the measured 1500" in (ceiling_warning(1500, 3000) or "")


# --- the treatment --------------------------------------------------------------------------------

STOCK = Arm("stock", {"VLLM_AMDOPT": "0"})
PLUGIN = Arm("plugin", {"VLLM_AMDOPT": "1"})


def test_plan_that_a_server_logged_is_read_back() -> None:
    made = plan("llama-3.1-8b", instinct())
    treatment = read_treatment(f"{PREFIX}noise\n{PREFIX}{made.summary()}\n")
    assert treatment.active and treatment.plan == made.digest
    assert treatment.features == {d.name for d in made.decisions if d.kind == "feature" and d.on}
    assert treatment.rules == {d.name for d in made.decisions if d.kind != "feature" and d.on}
    assert set(treatment.off) == {
        d.name for d in made.decisions if d.kind == "feature" and not d.on
    }
    assert treatment.rules, "on an Instinct GPU some serving rule applies to this model"
    assert treatment_problem(PLUGIN, treatment) is None
    assert "VLLM_AMDOPT=0 forbids it" in treatment_problem(STOCK, treatment).sentence  # type: ignore[union-attr]
    assert treatment.record()["digest"] == made.digest  # type: ignore[index]


def test_log_without_the_plugin() -> None:
    nothing = read_treatment("INFO stock vLLM\n")
    assert nothing == Treatment() and nothing.record() is None
    assert treatment_problem(STOCK, nothing) is None
    assert treatment_problem(Arm("any"), nothing) is None
    problem = treatment_problem(PLUGIN, nothing)
    assert problem is not None and "the plugin is not active in plugin" in problem.sentence


def test_features_that_should_be_on() -> None:
    arm = Arm("only-mla", {"VLLM_AMDOPT": "1"}, (), ("mla",), ("gemm",))
    on = Treatment(active=True, features=frozenset({"mla"}))
    assert treatment_problem(arm, on) is None
    other = Treatment(True, None, frozenset({"mla", "gemm"}))
    assert "gemm is on in only-mla" in treatment_problem(arm, other).sentence  # type: ignore[union-attr]
    not_here = Treatment(True, None, off={"mla": "the model has no latent attention"})
    problem = treatment_problem(arm, not_here)
    assert problem is not None and problem.status == "unsupported"
    empty = Treatment(active=True)
    assert "has nothing on" in treatment_problem(PLUGIN, empty).sentence  # type: ignore[union-attr]


def test_feature_that_failed_is_not_measured_as_if_it_worked() -> None:
    log = (
        'vllm-amdopt in use: {"plan": "p", "features": ["gemm"], "rules": [], "off": {}}\n'
        "WARNING vllm-amdopt: gemm is switched off and vLLM goes on without it: "
        "gemm_forward failed\n"
    )
    treatment = read_treatment(log)
    assert treatment.working == frozenset() and treatment.faults == {"gemm": "gemm_forward failed"}
    problem = treatment_problem(PLUGIN, treatment)
    assert problem is not None and "gemm failed in plugin" in problem.sentence


def test_broken_line_is_not_taken_for_a_plan() -> None:
    treatment = read_treatment('vllm-amdopt in use: {"plan": 1}\n')
    assert treatment.active and not treatment.features


def test_pattern_is_in_the_treated_log_only() -> None:
    assert pattern_problem("slow", {"a": "fast", "b": "slow"}) is None
    nowhere = pattern_problem("slow", {"a": "fast", "b": "fast"})
    assert nowhere is not None and "nothing in the log of b" in nowhere.sentence
    everywhere = pattern_problem("slow", {"a": "slow", "b": "slow"})
    assert everywhere is not None and "the log of a matches" in everywhere.sentence
