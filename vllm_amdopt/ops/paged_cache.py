"""How tokens lie in a paged cache, as plain PyTorch: the part that the attention references share.

Token `t` of a sequence lies in block `block_table[sequence, t // block_size]` at row
`t % block_size`. Not a kernel, and not fast.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gather_heads(cache: Tensor, block_row: Tensor, length: int) -> Tensor:
    """[length, kv_heads, head_size] from a cache [blocks, kv_heads, block_size, head_size]."""
    block_size = cache.shape[2]
    blocks = block_row[: -(-length // block_size)].long()
    return cache[blocks].transpose(1, 2).flatten(0, 1)[:length]


def gather_latent(cache: Tensor, block_row: Tensor, length: int) -> Tensor:
    """[length, width] of one sequence, from a latent cache [blocks, block_size, width]."""
    blocks = block_row[: -(-length // cache.shape[1])].long()
    return cache[blocks].flatten(0, 1)[:length]


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a reference computes in: float32, or float64 where the inputs already are."""
    return torch.promote_types(dtype, torch.float32)
