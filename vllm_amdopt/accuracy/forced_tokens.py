"""A logits processor for vLLM's V1 runner that makes each request continue with given tokens.

It does not touch what is measured: vLLM takes raw log-probabilities before any processor runs. The
V2 runner needs none of this, it replays traces itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

ARGUMENT = "amdopt_forced_tokens"
"""Key in `SamplingParams.extra_args` of the token ids to continue with."""

NAME = f"{__name__}:ForcedTokens"
"""As vLLM's `logits_processors` takes it: workers import it themselves."""


class ForcedTokens(AdapterLogitsProcessor):
    """Requests without the argument are left alone."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(
        self, params: Any
    ) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        """What vLLM applies to one request's logits, given the tokens it has produced so far."""
        forced = (params.extra_args or {}).get(ARGUMENT)
        if not forced:
            return None

        def force(produced: list[int], logits: torch.Tensor) -> torch.Tensor:
            if len(produced) < len(forced):
                wanted = forced[len(produced)]
                kept = logits[wanted].clone()
                logits.fill_(float("-inf"))
                # A logit of -inf would leave nothing to choose from.
                logits[wanted] = torch.nan_to_num(kept, nan=0.0, neginf=0.0)
            return logits

        return force
