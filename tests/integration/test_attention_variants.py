"""Emulated machine code answers as stock does: all block sizes, windows, sinks, drafts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import variants
from tests.integration.offline import GQA, MLA, Jobs, Result, questions
from tests.models import tasks

# 64 tokens per step: chunks of prompts share their steps with decodes.
OURS = {"environment": {"VLLM_AMDOPT": "1", "VLLM_AMDOPT_CPU_ENGINE": "gfx942"}}
CHUNKED = {"max_num_batched_tokens": 64, "max_num_seqs": 12}


def assert_ran(result: Result, *kernels: str) -> None:
    assert result.error is None, result.log
    assert result.disabled == {}
    for kernel in kernels:
        assert result.launches.get(kernel, 0) > 0, (kernel, result.launches)


@pytest.mark.parametrize(
    ("model", "block_size"), [(GQA, 1), (GQA, 16), (GQA, 128), (MLA, 16), (MLA, 128)]
)
def test_every_block_size_gives_stocks_tokens(jobs: Jobs, model: str, block_size: int) -> None:
    """MLA's size 1 is our default, and tested as such in `test_answers`.

    Stock answers at its own size: greedy tokens do not depend on it, and its MLA takes only 16.
    """
    prompts = [item.prompt for item in questions(6)][:4]
    ours = jobs.run(model, [prompts], arguments=CHUNKED | {"block_size": block_size}, **OURS)
    assert_ran(ours, "write_latent_kernel" if model == MLA else "prefill_kernel")
    assert ours.block_size == block_size
    assert ours.tokens() == jobs.stock(model, prompts).tokens()


# For each layer and head, beside scores of up to some tens: enough to change what is answered.
SINKS = [[2.0 * head for head in range(8)], [4.0] * 8]


def error(result: Result, truth: Result) -> float:
    """The largest difference between the leads of the same tokens, in nats."""
    assert result.tokens() == truth.tokens()
    return max(
        abs(one - other)
        for answer, right in zip(result.rounds[0], truth.rounds[0], strict=True)
        for one, other in zip(answer.leads, right.leads, strict=True)
    )


@pytest.mark.parametrize("variant", ["window", "sinks"])
def test_windows_and_sinks_are_those_of_stock(jobs: Jobs, tmp_path: Path, variant: str) -> None:
    """The same tokens, and leads at most twice as far from float32's as stock's own are.

    One layer has a window, which is shorter than the prompts (72 to 141 tokens), the other none.
    What mattered shows in stock's answers: without the window, or without the sinks, they differ.
    """
    prompts = [item.prompt for item in questions(2)]
    if variant == "window":
        model = variants.with_windows(tmp_path / "window", (False, True), 48)
        without = GQA
    else:
        model = variants.with_sinks(tmp_path / "sinks", SINKS, (True, False), 32)
        without = variants.with_windows(tmp_path / "no_sinks", (True, False), 32)
    stock, other = jobs.stock(model, prompts), jobs.stock(without, prompts)
    # By the plain references: vLLM 0.30 takes sinks on a CPU in bfloat16 only.
    references = {"VLLM_AMDOPT": "1", "VLLM_AMDOPT_CPU_ENGINE": "reference"}
    truth = jobs.run(model, [prompts], environment=references, arguments={"dtype": "float32"})
    for result in (stock, other, truth):
        assert result.error is None, result.log
    assert stock.tokens() != other.tokens()
    ours = jobs.run(model, [prompts], arguments=CHUNKED, **OURS)
    assert_ran(ours, "prefill_kernel", "cdna_split_kernel")
    assert error(ours, truth) <= 2 * error(stock, truth)


def test_drafts_are_verified_by_the_decode_kernel(jobs: Jobs) -> None:
    """Texts to copy, whose next tokens the prompt gives away: of a draft of three most are right.

    Each step writes the cache once for each of the model's two layers, and a step that no draft
    shortens makes one token.
    """
    prompts = [item.prompt for item in tasks.held_out("copy", 4)]
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    speculation = {"speculative_config": drafts}
    stock = jobs.stock(GQA, prompts, arguments=speculation)
    if stock.error is not None and "_rejection_greedy_sample" in stock.log:
        pytest.skip("on a CPU this vLLM (0.30) checks drafts in Triton, and so serves none")
    ours = jobs.run(GQA, [prompts], arguments=speculation, **OURS)
    assert_ran(ours, "cdna_split_kernel")
    assert ours.tokens() == stock.tokens() == jobs.stock(GQA, prompts).tokens()
    longest = max(len(tokens) for tokens in ours.tokens())
    assert ours.launches["write_heads_kernel"] < 2 * longest
