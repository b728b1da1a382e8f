"""Conditions on the model, as data: what it is, and what of it the kernels do not know yet.

Same form as in `conditions`: `refusal(situation)` says why not, `describe()` what is asked.
"""

from dataclasses import dataclass

from vllm_amdopt.policy.conditions import either
from vllm_amdopt.policy.model_facts import ATTENTION_WORDS
from vllm_amdopt.policy.situation import Situation


@dataclass(frozen=True)
class ModelKnown:
    """The model's config.json could be read."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.model is not None:
            return None
        return "the model's config.json could not be read, so nothing is known about it"

    def describe(self) -> str:
        return "a readable model configuration"


@dataclass(frozen=True)
class AttentionKindIn:
    """The model's attention is one of these kinds; `why` ends the sentence."""

    kinds: tuple[str, ...]
    why: str = ""

    def refusal(self, situation: Situation) -> str | None:
        model = situation.model
        if model is None:
            return ModelKnown().refusal(situation)
        if model.attention in self.kinds:
            return None
        wanted = either(tuple(map(_in_short, self.kinds)))
        sentence = f"the model has {_in_short(model.attention)}, not {wanted}"
        return f"{sentence}: {self.why}" if self.why else sentence

    def describe(self) -> str:
        return f"{either(tuple(ATTENTION_WORDS[kind] for kind in self.kinds))} attention"


@dataclass(frozen=True)
class PlainCausalAttention:
    """Causal decoder attention without the variations that our attention kernels lack."""

    def refusal(self, situation: Situation) -> str | None:
        model = situation.model
        if model is None:
            return ModelKnown().refusal(situation)
        if model.encoder_only:
            return "the model is an encoder; the kernels are for causal decoders"
        if model.encoder_decoder:
            return "the model is an encoder-decoder; the kernels are for causal decoders"
        if model.bidirectional_images:
            return "the model's image tokens attend in both directions, which the kernels do not do"
        if model.attention_chunk_size:
            return "the model has chunked local attention, which is not proved with the kernels yet"
        return None

    def describe(self) -> str:
        return (
            "a causal decoder, with or without attention sinks or ALiBi, but without bidirectional "
            "image tokens or chunked local attention"
        )


@dataclass(frozen=True)
class DtypeIn:
    """The model's dtype, where it is known, is one of these."""

    dtypes: tuple[str, ...]

    def refusal(self, situation: Situation) -> str | None:
        if situation.dtype is None or situation.dtype in self.dtypes:
            return None
        return f"the model runs in {situation.dtype}, the kernels in {either(self.dtypes)}"

    def describe(self) -> str:
        return f"dtype {either(self.dtypes)}"


@dataclass(frozen=True)
class CacheDtypeIn:
    """The KV cache dtype, as --kv-cache-dtype names it, is one of these."""

    dtypes: tuple[str, ...]

    def refusal(self, situation: Situation) -> str | None:
        dtype = situation.choices.kv_cache_dtype
        if dtype in self.dtypes:
            return None
        return f"the KV cache is {dtype}; the kernels read {either(self.dtypes)} so far"

    def describe(self) -> str:
        return f"--kv-cache-dtype {either(self.dtypes)}"


@dataclass(frozen=True)
class Unquantized:
    """The weights are not quantized."""

    def refusal(self, situation: Situation) -> str | None:
        method = situation.quantization
        if situation.model is None and method is None:
            return ModelKnown().refusal(situation)
        if method is None:
            return None
        return f"the weights are quantized ({method}); the kernel is for unquantized linear layers"

    def describe(self) -> str:
        return "unquantized weights"


@dataclass(frozen=True)
class ContextKnown:
    """The context length is known, from --max-model-len or from the model."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.context is not None:
            return None
        return "the context length is not known, so no size can be chosen: set --max-model-len"

    def describe(self) -> str:
        return "a known context length"


@dataclass(frozen=True)
class KvCopiesAtMost:
    """Tensor parallelism stores each KV head at most this many times."""

    copies: int

    def refusal(self, situation: Situation) -> str | None:
        model, ranks = situation.model, situation.choices.tensor_parallel_size
        if model is None or model.num_kv_heads <= 0:
            return ModelKnown().refusal(situation) if model is None else None
        stored = -(-ranks // model.num_kv_heads)
        if stored <= self.copies:
            return None
        return (
            f"{ranks} tensor-parallel ranks share {model.num_kv_heads} KV heads, so each would be "
            f"offloaded {stored} times"
        )

    def describe(self) -> str:
        return f"each KV head stored at most {self.copies} times over the ranks"


@dataclass(frozen=True)
class HeadSizeIn:
    """The attention heads have one of the sizes that the kernels are tested for."""

    sizes: tuple[int, ...]

    def refusal(self, situation: Situation) -> str | None:
        model = situation.model
        if model is None:
            return ModelKnown().refusal(situation)
        if model.head_size in self.sizes:
            return None
        return f"heads of size {model.head_size} are not tested: {either(_texts(self.sizes))} are"

    def describe(self) -> str:
        return f"head size {either(_texts(self.sizes))}"


@dataclass(frozen=True)
class LatentIn:
    """The MLA latent has one of the ranks, and the rope part one of the sizes, that are tested."""

    ranks: tuple[int, ...]
    rope_sizes: tuple[int, ...]

    def refusal(self, situation: Situation) -> str | None:
        model = situation.model
        if model is None:
            return ModelKnown().refusal(situation)
        if model.kv_lora_rank in self.ranks and model.qk_rope_head_dim in self.rope_sizes:
            return None
        return (
            f"a latent of {model.kv_lora_rank}+{model.qk_rope_head_dim} is not tested: "
            f"{self._tested()} is"
        )

    def describe(self) -> str:
        return f"a latent of {self._tested()}"

    def _tested(self) -> str:
        return f"{either(_texts(self.ranks))} + {either(_texts(self.rope_sizes))}"


def _in_short(kind: str) -> str:
    """The word for an attention kind without what it stands for in brackets."""
    return ATTENTION_WORDS[kind].partition(" (")[0]


def _texts(numbers: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(map(str, numbers))
