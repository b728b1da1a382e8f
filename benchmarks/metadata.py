"""Measures what our attention backends' metadata builders cost the host for each step.

    python -m benchmarks.metadata [--requests 256] [--rounds 2000] [--json FILE]

vLLM builds the metadata once per step and group of layers, in Python, before the first kernel. The
builders of AMDOPT_ATTN (GQA) and AMDOPT_MLA get batches as vLLM's model runner makes them, on the
host; each passes a correctness gate before it is timed. The time is that of the calling thread. On
a GPU the few tensor operations would be launches instead. vLLM's backend for MLA prefill prepares
data of its own for a batch with prompts; that is not ours and left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_amdopt.integration.attention_backend import AmdOptAttentionMetadataBuilder
from vllm_amdopt.integration.mla_backend import AmdOptMLAMetadataBuilder

REQUESTS, ROUNDS = 256, 2000
BLOCK_SIZE = 16
CHUNK, CONTEXT = 128, 1024
DRAFT_TOKENS = 3


@dataclass(frozen=True)
class Case:
    """A builder, how many tokens are decoded for each request, and how many prompts come last."""

    name: str
    backend: str
    drafts: bool
    prompts: int


CASES = tuple(
    Case(f"{backend}, {name}", backend, drafts, prompts)
    for backend in ("GQA", "MLA")
    for name, drafts, prompts in (
        ("decode", False, 0),
        ("decode of drafts", True, 0),
        ("decode and 4 chunks of prompts", False, 4),
    )
)


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: the median and the middle 90 % of all rounds."""

    case: str
    requests: int
    median: float
    low: float
    high: float


def batch(case: Case, requests: int) -> CommonAttentionMetadata:
    """`requests` requests with `CONTEXT` tokens before the new ones, prompts in chunks last."""
    decodes = requests - case.prompts
    new = torch.tensor([1 + DRAFT_TOKENS * case.drafts] * decodes + [CHUNK] * case.prompts)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), new.cumsum(0)]).to(torch.int32)
    lengths = (CONTEXT + new).to(torch.int32)
    blocks = -(-int(lengths.max()) // BLOCK_SIZE)
    table = torch.arange(requests * blocks, dtype=torch.int32).view(requests, blocks)
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=lengths,
        seq_lens_cpu_upper_bound=lengths,
        num_reqs=requests,
        num_actual_tokens=int(new.sum()),
        max_query_len=int(new.max()),
        max_seq_len=int(lengths.max()),
        block_table_tensor=table,
        slot_mapping=torch.arange(int(new.sum())),
    )


class _PrefillBackend:
    """In place of vLLM's, which depends on the GPU."""

    def clone(self) -> _PrefillBackend:
        return self

    def prepare_metadata(self, metadata: Any) -> None:
        """Nothing: not ours to measure."""


def builder(case: Case) -> Any:
    """The case's metadata builder, as vLLM makes it for DeepSeek-V3's or Llama-8B's shape."""
    speculative = SimpleNamespace(
        num_speculative_tokens=DRAFT_TOKENS,
        parallel_drafting=False,
        use_dflash=lambda: False,
        method="mtp",
    )
    layer = SimpleNamespace(
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        prefill_backend=_PrefillBackend(),
    )
    config: Any = SimpleNamespace(
        speculative_config=speculative if case.drafts else None,
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
            cp_kv_cache_interleave_size=1,
        ),
        model_config=SimpleNamespace(
            get_num_attention_heads=lambda parallel: 32,
            get_head_size=lambda: 576,
            dtype=torch.bfloat16,
            max_model_len=8192,
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=REQUESTS),
        cache_config=SimpleNamespace(block_size=BLOCK_SIZE, cache_dtype="auto"),
        attention_config=SimpleNamespace(use_prefill_query_quantization=False),
        compilation_config=SimpleNamespace(static_forward_context={"layer": layer}),
    )
    spec: Any = SimpleNamespace(num_kv_heads=8, head_size=128, block_size=BLOCK_SIZE)
    which = AmdOptAttentionMetadataBuilder if case.backend == "GQA" else AmdOptMLAMetadataBuilder
    return which(spec, ["layer"], config, torch.device("cpu"))


def check(case: Case, metadata: Any, common: CommonAttentionMetadata) -> None:
    """Raise AssertionError unless the metadata says of the batch what is so."""
    decodes = common.num_reqs - case.prompts
    assert (metadata.num_decodes, metadata.num_prefills) == (decodes, case.prompts)
    assert metadata.num_decode_tokens == decodes * (1 + DRAFT_TOKENS * case.drafts)
    assert metadata.num_actual_tokens == common.num_actual_tokens
    gqa = case.backend == "GQA"
    decode = metadata if gqa else metadata.decode
    assert torch.equal(decode.seq_lens[:decodes], common.seq_lens[:decodes])
    assert torch.equal(decode.block_table[:decodes], common.block_table_tensor[:decodes])
    if case.prompts:
        prefill = metadata if gqa else metadata.prefill
        assert prefill.query_start_loc.tolist() == [CHUNK * i for i in range(case.prompts + 1)]


def microseconds(call: Callable[[], object], rounds: int) -> list[float]:
    """The time of each of `rounds` calls, after a tenth as many to warm up."""
    for _ in range(rounds // 10 + 1):
        call()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        call()
        taken.append((time.perf_counter_ns() - start) / 1000)
    return taken


def measure(case: Case, requests: int, rounds: int) -> Timing:
    """Time the case after its gate."""
    common, ours = batch(case, requests), builder(case)
    check(case, ours.build(0, common), common)
    taken = sorted(microseconds(lambda: ours.build(0, common), rounds))
    edge = len(taken) // 20
    return Timing(case.name, requests, statistics.median(taken), taken[edge], taken[-1 - edge])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=REQUESTS, help="in a batch (default: 256)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="calls timed (default: 2000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the timings there too")
    options = parser.parse_args(arguments)
    if options.requests < 8 or options.rounds < 20:
        parser.error("--requests of at least 8 and --rounds of at least 20 are needed")
    torch.set_num_threads(1)
    processor = (
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(f"Measured on this CPU ({processor}), microseconds per call; middle 90 % in brackets")
    timings = []
    for case in CASES:
        timing = measure(case, options.requests, options.rounds)
        timings.append(timing)
        print(
            f"  {timing.case:38} {timing.requests:4} requests  {timing.median:7.1f}"
            f"  [{timing.low:.1f}, {timing.high:.1f}]"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(timing) for timing in timings], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
