"""The cells of the attention benchmark, and the kernels that are compared in them; times nothing.

A cell is one rank's share of a model at one batch and context: decode, one new token per sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.amd_model.serving import MODELS as SHARES
from benchmarks.amd_model.serving import Model
from vllm_amdopt.kernels import availability
from vllm_amdopt.ops import mla_decode, paged_attention_decode
from vllm_amdopt.ops.compute_units import compute_units
from vllm_amdopt.ops.operation import Operation, RefusedError
from vllm_amdopt.ops.tolerance import excess

BATCHES = (1, 8, 32, 128, 256)
CONTEXTS = (1024, 8192, 32768)
BLOCK_SIZE = 16
_BY_NAME = {share.name: share for share in SHARES}
_DEEPSEEK = _BY_NAME["deepseek-v3-tp8"]
MODELS: tuple[Model, ...] = (
    _BY_NAME["llama-8b"],
    _BY_NAME["llama-405b-tp8"],
    _BY_NAME["qwen3-235b-tp8"],
    _DEEPSEEK,
    replace(_DEEPSEEK, name="deepseek-v3-tp4", ranks=4, query_heads=32),
    # 64 heads and the same latent as DeepSeek's (its config.json)
    replace(_DEEPSEEK, name="kimi-k2.5-tp8", query_heads=8),
)
OURS = "ours"
GATED = 2
"""Sequences of a cell whose results are compared with the reference."""


@dataclass(frozen=True)
class Cell:
    """One model, batch and context."""

    model: Model
    batch: int
    context: int

    @property
    def name(self) -> str:
        return f"{self.model.name}/batch{self.batch}/context{self.context}"

    @property
    def row_elements(self) -> int:
        """What one token has in the cache."""
        if self.model.latent:
            return self.model.latent + self.model.rope
        return 2 * self.model.kv_heads * self.model.head_size

    def cache_bytes(self, dtype: torch.dtype) -> int:
        """Every key and value, or latent, once: the floor."""
        return self.batch * self.context * self.row_elements * dtype.itemsize


def cells(
    models: tuple[str, ...] = (),
    batches: tuple[int, ...] = BATCHES,
    contexts: tuple[int, ...] = CONTEXTS,
) -> Iterator[Cell]:
    """All cells of the models named (all: none named)."""
    for model in MODELS:
        if not models or model.name in models:
            for batch in batches:
                for context in contexts:
                    yield Cell(model, batch, context)


@dataclass(frozen=True)
class Arm:
    """A kernel on the tensors of one cell: `call` writes `out`. `wrong` judges what it wrote."""

    name: str
    call: Callable[[], object]
    out: Tensor


@dataclass(frozen=True)
class Prepared:
    """A cell's tensors behind its arms, and the truth about its first sequences."""

    arms: tuple[Arm, ...]
    absent: dict[str, str]
    truth: Tensor
    same: Tensor

    def wrong(self, arm: Arm) -> str | None:
        """None where the first sequences keep the error budget, otherwise a sentence."""
        rows = self.truth.shape[0]
        return excess(arm.out[:rows].view_as(self.same), self.truth, self.same)


def prepare(cell: Cell, device: torch.device, dtype: torch.dtype) -> Prepared:
    """Tensors of random contents, blocks in a mixed order, and the arms that this machine has."""
    generator = torch.Generator(device).manual_seed(1)
    pages = -(-cell.context // BLOCK_SIZE)
    blocks = cell.batch * pages
    table = torch.randperm(blocks, generator=generator, device=device).to(torch.int32)
    table = table.view(cell.batch, pages)
    lengths = torch.full((cell.batch,), cell.context, dtype=torch.int32, device=device)
    build = _latent if cell.model.latent else _heads
    return build(cell, device, dtype, table, lengths, generator)


def ours(operation: Operation, **facts: Any) -> Callable[..., Any]:
    """The implementation that serving would choose on this machine."""
    choice = operation.choose(**facts, gfx=availability.current_gfx())
    if choice.implementation is None:
        raise RefusedError("; ".join(choice.refusals.values()))
    return choice.implementation.run


def _random(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    return torch.empty(shape, device=device, dtype=dtype).normal_(generator=generator)


def _heads(
    cell: Cell,
    device: torch.device,
    dtype: torch.dtype,
    table: Tensor,
    lengths: Tensor,
    generator: torch.Generator,
) -> Prepared:
    model, size = cell.model, cell.model.head_size
    shape = (table.numel(), model.kv_heads, BLOCK_SIZE, 2 * size)
    cache = _random(shape, device, dtype, generator)
    query = _random((cell.batch, model.query_heads, size), device, dtype, generator)
    k_cache, v_cache, scale = cache[..., :size], cache[..., size:], size**-0.5
    options = {"max_seq_len": cell.context}
    arms, absent = [], {}
    out = torch.empty_like(query)
    launch = ours(
        paged_attention_decode.OPERATION,
        head_size=size,
        num_heads=model.query_heads,
        num_kv_heads=model.kv_heads,
        block_size=BLOCK_SIZE,
        dtype=dtype,
        cache_dtype=dtype,
    )

    def call() -> None:
        launch(query, k_cache, v_cache, table, lengths, scale, out, **options)

    arms.append(Arm(OURS, call, out))
    for name, make in (("vllm-triton", _unified), ("flash-attention", _flash)):
        try:
            arms.append(Arm(name, *make(cell, query, k_cache, v_cache, table, lengths, scale)))
        except (ImportError, AttributeError, NotImplementedError, RuntimeError) as error:
            absent[name] = f"{type(error).__name__}: {error}"
    rows = slice(min(GATED, cell.batch))
    truth, same = (torch.empty_like(query[rows], dtype=d) for d in (torch.float32, dtype))
    for into, more in ((truth, {}), (same, {"compute_dtype": dtype})):
        paged_attention_decode.reference(
            query[rows],
            k_cache,
            v_cache,
            table[rows],
            lengths[rows],
            scale,
            into,
            **options,
            **more,
        )
    return Prepared(tuple(arms), absent, truth, same)


def _unified(
    cell: Cell, query: Tensor, k: Tensor, v: Tensor, table: Tensor, lengths: Tensor, scale: float
) -> tuple[Callable[[], object], Tensor]:
    """vLLM's Triton unified attention, with the segments that its backend would give it."""
    from vllm.v1.attention.ops.triton_unified_attention import unified_attention

    if query.device.type != "cuda":
        raise NotImplementedError("it needs a GPU")
    out = torch.empty_like(query)
    starts = torch.arange(cell.batch + 1, dtype=torch.int32, device=query.device)
    # MIN_LAUNCH_GRID_SIZE_2D and NUM_PAR_SOFTMAX_SEGMENTS of v1/attention/backends/triton_attn.py
    most, segments = 128 // cell.model.kv_heads, 16
    shape = (most, cell.model.query_heads, segments)
    partial = torch.empty(*shape, query.shape[2], dtype=torch.float32, device=query.device)
    maxima, sums = torch.empty(2, *shape, dtype=torch.float32, device=query.device)
    keys, values = k.transpose(1, 2), v.transpose(1, 2)

    def call() -> None:
        unified_attention(
            q=query, k=keys, v=values, out=out, cu_seqlens_q=starts, max_seqlen_q=1,
            seqused_k=lengths, max_seqlen_k=cell.context, softmax_scale=scale, causal=True,
            window_size=(-1, -1), block_table=table, softcap=0.0, q_descale=None, k_descale=None,
            v_descale=None, seq_threshold_3D=most, num_par_softmax_segments=segments,
            softmax_segm_output=partial, softmax_segm_max=maxima, softmax_segm_expsum=sums,
        )  # fmt: skip

    return call, out


def _flash(
    cell: Cell, query: Tensor, k: Tensor, v: Tensor, table: Tensor, lengths: Tensor, scale: float
) -> tuple[Callable[[], object], Tensor]:
    """FlashAttention over pages, as vLLM ships it for CUDA."""
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    out = torch.empty_like(query)
    starts = torch.arange(cell.batch + 1, dtype=torch.int32, device=query.device)
    keys, values = k.transpose(1, 2), v.transpose(1, 2)

    def call() -> None:
        flash_attn_varlen_func(
            query, keys, values, max_seqlen_q=1, cu_seqlens_q=starts, max_seqlen_k=cell.context,
            seqused_k=lengths, softmax_scale=scale, causal=True, block_table=table, out=out,
        )  # fmt: skip

    return call, out


def _latent(
    cell: Cell,
    device: torch.device,
    dtype: torch.dtype,
    table: Tensor,
    lengths: Tensor,
    generator: torch.Generator,
) -> Prepared:
    model = cell.model
    width = model.latent + model.rope
    cache = _random((table.numel(), BLOCK_SIZE, width), device, dtype, generator)
    query = _random((cell.batch, model.query_heads, width), device, dtype, generator)
    scale = 192**-0.5
    options: dict[str, Any] = {"kv_lora_rank": model.latent, "max_seq_len": cell.context}
    out = query.new_empty(cell.batch, model.query_heads, model.latent)
    launch = ours(
        mla_decode.OPERATION,
        kv_lora_rank=model.latent,
        rope_size=model.rope,
        block_size=BLOCK_SIZE,
        dtype=dtype,
        cache_dtype=dtype,
    )

    def call() -> None:
        launch(query, cache, table, lengths, scale, out, None, **options)

    arms = [Arm(OURS, call, out)]
    absent = {}
    try:
        arms.append(Arm("vllm-triton", *_triton_mla(cell, query, cache, table, lengths, scale)))
    except (ImportError, AttributeError, NotImplementedError, RuntimeError) as error:
        absent["vllm-triton"] = f"{type(error).__name__}: {error}"
    rows = slice(min(GATED, cell.batch))
    truth, same = (torch.empty_like(out[rows], dtype=d) for d in (torch.float32, dtype))
    for into, more in ((truth, {}), (same, {"compute_dtype": dtype})):
        mla_decode.reference(
            query[rows], cache, table[rows], lengths[rows], scale, into, None, **options, **more
        )
    return Prepared(tuple(arms), absent, truth, same)


def _triton_mla(
    cell: Cell, query: Tensor, cache: Tensor, table: Tensor, lengths: Tensor, scale: float
) -> tuple[Callable[[], object], Tensor]:
    """vLLM's Triton MLA decode, split as its backend would."""
    from vllm.v1.attention.backends.mla import triton_mla
    from vllm.v1.attention.ops.triton_decode_attention import decode_attention_fwd

    if query.device.type != "cuda":
        raise NotImplementedError("it needs a GPU")
    batch, heads, latent = cell.batch, cell.model.query_heads, cell.model.latent
    splits = triton_mla._compute_num_kv_splits(cell.context, compute_units(query.device))
    out = query.new_zeros(batch, heads, latent)
    lse = query.new_zeros(batch, heads)
    partial = query.new_empty(batch, heads, splits, latent + 1, dtype=torch.float32)
    one_head = cache.unsqueeze(2)

    def call() -> None:
        decode_attention_fwd(
            query, one_head, one_head[..., :latent], out, lse, table, lengths, partial, splits,
            scale, BLOCK_SIZE, is_mla=True,
        )  # fmt: skip

    return call, out
