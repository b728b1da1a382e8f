"""Where the parts of split MLA sequences leave their results, and the launch that merges them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """Normalised results [sequences, rows, splits, latent] and their base-2 log-sum-exp, fp32.

    A row is a head of one of a sequence's new tokens.
    """

    results: Tensor
    lse: Tensor

    @classmethod
    def empty(
        cls, sequences: int, rows: int, splits: int, latent: int, device: torch.device
    ) -> Parts:
        """Room for so many."""
        shape = (sequences, rows, splits)
        return cls(
            torch.empty((*shape, latent), dtype=torch.float32, device=device),
            torch.empty(shape, dtype=torch.float32, device=device),
        )

    def merge(
        self, seq_lens: Tensor, out: Tensor, lse: Tensor | None, *, tile: int, query_len: int
    ) -> None:
        """Write what the parts come to; `tile` is that of the kernel that left them."""
        from vllm_amdopt.kernels import mla_decode as kernels
        from vllm_amdopt.kernels import mla_decode_plan as plans

        sequences, rows, splits, latent = self.results.shape
        config = plans.choose_reduce_config(splits, latent)
        kernels.reduce_kernel[(sequences, rows, latent // config.columns)](
            self.results,
            self.lse,
            seq_lens,
            out,
            lse,
            rows // query_len,
            splits,
            *out.stride()[:2],
            *((0, 0) if lse is None else lse.stride()),
            LATENT_SIZE=latent,
            QUERY_LEN=query_len,
            CHUNK=config.chunk,
            COLUMNS=config.columns,
            TILE=tile,
            HAS_LSE=lse is not None,
            num_warps=config.num_warps,
        )
