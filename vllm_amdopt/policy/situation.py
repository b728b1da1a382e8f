"""What conditions may look at: the model, the machine, the user's own choices, the software.

Facts only; no decision is taken here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_amdopt.hardware import Hardware
from vllm_amdopt.policy.model_facts import ModelFacts

SettingValue = str | int | float | bool
"""What a serving rule may set a setting of vLLM's to."""


@dataclass(frozen=True)
class UserChoices:
    """What the user said to vLLM themselves; the defaults mean "said nothing".

    `kv_offload`: offloading or any KV connector is configured; `kv_offloading_gib`: the buffer's
    size where --kv-offloading-size says it. `max_model_len` is in tokens.
    Fields that may be None are None where the user left them to vLLM.
    """

    block_size: int | None = None
    attention_backend: str | None = None
    kv_offload: bool = False
    kv_offloading_gib: float | None = None
    disable_custom_all_reduce: bool = False
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    max_model_len: int | None = None
    kv_cache_dtype: str = "auto"
    dtype: str | None = None
    quantization: str | None = None
    expandable_segments: bool = False
    expert_parallel: bool = False
    prefix_caching: bool | None = None
    sleep_mode: bool = False
    moe_backend: str | None = None
    mm_encoder_tp_mode: str | None = None
    fuse_allreduce_rms: bool | None = None
    fuse_rope_kvcache: bool | None = None
    allow_deprecated_quantization: bool = False
    lora: bool = False
    speculative: bool = False
    enforce_eager: bool = False
    gpu_memory_utilization: float | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None


@dataclass(frozen=True)
class Software:
    """Installed versions; None where a package is absent or its version is not known.

    `missing_seams`: the seam keys that this vLLM lacks, each with the sentence why. `patches`: the
    numbers of our patches (patches/manifest.toml) that this vLLM has.
    """

    vllm: str | None = None
    triton: str | None = None
    aiter: str | None = None
    missing_seams: Mapping[str, str] = field(default_factory=dict)
    patches: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Situation:
    """Everything a condition may ask about.

    `decided` holds the decisions already taken in this plan (name -> on), in plan order: features
    first, then the rules as RULES lists them; `values` holds what the rules among them set
    (setting -> value). `measured_wins` maps a feature to one sentence on
    the calibration record that says it wins on this very GPU.
    """

    model: ModelFacts | None
    hardware: Hardware
    choices: UserChoices = field(default_factory=UserChoices)
    software: Software = field(default_factory=Software)
    environment: Mapping[str, str] = field(default_factory=dict)
    decided: Mapping[str, bool] = field(default_factory=dict)
    values: Mapping[str, SettingValue] = field(default_factory=dict)
    measured_wins: Mapping[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> str | None:
        """The dtype the model will run in, as far as it is known ("bfloat16", "float16", ...)."""
        asked = self.choices.dtype
        if asked is None or asked == "auto":
            found = self.model.dtype if self.model else None
            # vLLM's `auto` casts float32 checkpoints down to the platform's first dtype.
            return "bfloat16" if found == "float32" else found
        return {"half": "float16", "float": "float32"}.get(asked, asked)

    @property
    def quantization(self) -> str | None:
        """The quantization method in use: the user's, else the checkpoint's."""
        return self.choices.quantization or (self.model.quantization if self.model else None)

    def variable(self, name: str) -> str | None:
        """An environment variable as vLLM will see it: what this plan sets, else the user's."""
        planned = self.values.get(f"env.{name}")
        return self.environment.get(name) if planned is None else str(planned)

    @property
    def context(self) -> int | None:
        """The longest context served, in tokens, as far as it is known."""
        return self.choices.max_model_len or (self.model.max_context if self.model else None)


def is_true(value: str | None) -> bool:
    """How vLLM reads its boolean variables (VLLM_ROCM_USE_AITER and its sub-switches)."""
    return value is not None and value.strip().lower() in ("1", "true")
