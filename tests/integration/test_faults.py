"""A failure in any hook ends in a served request and one warning; when strict, in an error."""

from __future__ import annotations

import pytest

from tests.integration.offline import GQA, MLA, Jobs, questions
from vllm_amdopt.integration import faults

PROMPTS = [item.prompt for item in questions(1)]
NEEDS_MLA = {"mla_backend", "mla_self_test", "mla_forward", "configuration", "block_size"}
NEEDS_TENSOR_PARALLEL = {"communicator_class", "communicator", "all_reduce"}
"""Tested with a server of two ranks in test_tensor_parallel, and in test_platform."""

NEEDS_ROCM = {"attention_order"}
"""Tested on a simulated machine in test_rocm_selection."""

HOOKS = sorted(set(faults.HOOKS) - NEEDS_TENSOR_PARALLEL - NEEDS_ROCM)


def model_for(hook: str) -> str:
    return MLA if hook in NEEDS_MLA else GQA


def environment_for(hook: str) -> dict[str, str]:
    """Kernels run as machine code only where the hook is about kernels; elsewhere it is the same
    fault in a tenth of the time."""
    about_kernels = hook.endswith(("_forward", "_self_test", "_bind"))
    return {
        "VLLM_AMDOPT": "1",
        "VLLM_AMDOPT_CPU_ENGINE": "gfx942" if about_kernels else "reference",
        "VLLM_AMDOPT_INJECT_FAULT": hook,
    }


@pytest.mark.parametrize("hook", HOOKS)
def test_a_fault_costs_one_feature_and_no_request(jobs: Jobs, hook: str) -> None:
    model = model_for(hook)
    result = jobs.run(
        model,
        [PROMPTS],
        environment=environment_for(hook),
    )
    assert result.error is None, result.log
    assert result.tokens() == jobs.stock(model, PROMPTS).tokens()
    assert set(result.disabled) == {faults.HOOKS[hook]}
    warnings = [line for line in result.log.splitlines() if "is switched off" in line]
    assert len(warnings) == 1, warnings
    assert hook in warnings[0] and faults.HOOKS[hook] in warnings[0]


@pytest.mark.parametrize("hook", HOOKS)
def test_strict_turns_a_fault_into_an_error_that_names_the_feature(jobs: Jobs, hook: str) -> None:
    result = jobs.run(
        model_for(hook),
        [PROMPTS],
        environment={**environment_for(hook), "VLLM_AMDOPT_STRICT": "1"},
    )
    assert result.error is not None
    # vLLM's engine may wrap the error; the sentence itself must be in what the user sees.
    sentence = f"vllm-amdopt: {faults.HOOKS[hook]}: {hook} failed with InjectedFaultError"
    assert sentence in result.log
