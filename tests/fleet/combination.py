"""One combination: vLLM's whole configuration, its model on the meta device, and what it selected.

vLLM's own model class is built, with few layers and without memory: so each attention layer, each
expert layer and each linear layer selects its backend itself, with the shapes of one rank. Nothing
here decides or predicts anything.
"""

from __future__ import annotations

import contextlib
import enum
import os
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.fleet import prediction

LAYERS = 4
"""As many layers as show each kind where the configuration lists none: DeepSeek's fourth has the
first experts, Qwen3-Next's fourth the first attention."""

VISION_LAYERS = 2


def record(path: str, engine: dict[str, Any]) -> dict[str, Any]:
    """Everything the fleet's page and tests look at. Errors of vLLM are results, not failures."""
    result: dict[str, Any] = {"outcome": "ok", "stage": "configuration"}
    try:
        config, seen = configure(path, engine)
        result.update(configuration(config))
        result["predicted"] = prediction.of(config, seen)
        result["stage"] = "model"
        model = build(config)
        result.update(selection(config, model))
        result["stage"] = "block size"
        result["block_size"] = block_size(config)
        result["stage"] = "done"
    except BaseException as error:
        result["outcome"] = "error"
        result["error"] = f"{type(error).__name__}: {last_line(str(error))}"
        result["traceback"] = traceback.format_exc()[-6000:]
    return result


def last_line(text: str) -> str:
    """The last line that says something; pydantic adds a line with a link to its errors."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("For further information")]
    return lines[-1] if lines else ""


def configure(path: str, engine: dict[str, Any]) -> tuple[Any, Any]:
    """vLLM's own way from arguments to a configuration, and the situation before any plan."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    arguments = EngineArgs(
        model=path,
        skip_tokenizer_init=True,
        load_format="dummy",
        distributed_executor_backend="mp",
        **engine,
    )
    with prediction.remembered() as seen:
        config = arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)
    return config, seen


def configuration(config: Any) -> dict[str, Any]:
    """What is known before a model exists."""
    from vllm._aiter_ops import rocm_aiter_ops
    from vllm.platforms import current_platform

    passes = config.compilation_config.pass_config
    transfer = config.kv_transfer_config
    found: dict[str, Any] = {
        "platform": type(current_platform).__name__,
        "aiter_on": bool(rocm_aiter_ops.is_enabled()),
        "aiter_variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("VLLM_ROCM_")
        },
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "kv_cache_dtype": str(config.cache_config.cache_dtype),
        "kv_offloading_size": getattr(config.cache_config, "kv_offloading_size", None),
        "kv_connector": None if transfer is None else transfer.kv_connector,
        "custom_all_reduce": not config.parallel_config.disable_custom_all_reduce,
        "communicator": current_platform.get_device_communicator_cls().rpartition(".")[2],
        "fusions": sorted(n for n, on in vars(passes).items() if n.startswith("fuse_") and on),
        "custom_ops": sorted(config.compilation_config.custom_ops),
        "moe_backend_asked": getattr(config.kernel_config, "moe_backend", None),
        "quantization": config.model_config.quantization,
    }
    additional = config.additional_config
    plan = additional.get("amdopt") if isinstance(additional, dict) else None
    if plan is not None:
        found["plan"] = {
            "digest": plan["digest"],
            "on": {d["name"]: d["settings"] for d in plan["decisions"] if d["on"]},
            "warnings": plan["warnings"],
            "notes": plan["notes"],
            "refusals": plan["refusals"],
        }
    return found


class ProcessGroup:
    """As much of torch's: some models ask it for the expert group's size and rank."""

    def __init__(self, size: int) -> None:
        self._size = size

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return 0


class Group:
    """As much of vLLM's GroupCoordinator as building a model asks for: sizes and ranks."""

    def __init__(self, size: int) -> None:
        self.world_size = size
        self.ranks = list(range(size))
        self.rank = self.rank_in_group = self.local_rank = 0
        self.is_first_rank = True
        self.is_last_rank = size == 1
        self.first_rank, self.last_rank = 0, size - 1
        self.device_communicator = None
        self.device_group = self.cpu_group = ProcessGroup(size)
        self.mq_broadcaster = None
        self.unique_name = "simulated"


def pretend_groups(tensor_parallel_size: int) -> None:
    """Rank 0 of one tensor-parallel group, everything else of size one."""
    from vllm.distributed import parallel_state

    for name in ("_PP", "_DP", "_DCP", "_PCP", "_ETP", "_INNER_DP_WORLD"):
        if hasattr(parallel_state, name):
            setattr(parallel_state, name, Group(1))
    # vLLM's expert group spans the tensor-parallel ranks, whether or not expert parallel is on.
    for name in ("_WORLD", "_TP", "_EP"):
        setattr(parallel_state, name, Group(tensor_parallel_size))


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Tensors without memory, also where a model asks for the GPU by name."""
    import torch
    from torch.overrides import TorchFunctionMode

    meta = torch.device("meta")

    def is_gpu(value: Any) -> bool:
        if isinstance(value, torch.device):
            return value.type == "cuda"
        if isinstance(value, str):
            return value.partition(":")[0] == "cuda"
        return type(value) is int  # a GPU's number

    moves = (torch.Tensor.to, torch._C._nn._parse_to)

    class NoGpu(TorchFunctionMode):
        def __torch_function__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None):
            named = dict(kwargs or {})
            if is_gpu(named.get("device")):
                named["device"] = meta
            if function is torch.Tensor.cuda:
                return args[0].to(meta)
            if function in moves:
                args = tuple(meta if is_gpu(value) else value for value in args)
            return function(*args, **named)

    with meta, NoGpu():
        yield


def build(config: Any) -> Any:
    """vLLM's model class for this configuration, cut down to the first layers."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import utils as loader
    from vllm.utils.torch_utils import set_default_torch_dtype
    from vllm.v1.worker.workspace import init_workspace_manager

    shorten(config.model_config)
    init_workspace_manager(torch.device("meta"))
    # For reloading weights; it selects nothing and takes a third of the time.
    loader.record_metadata_for_reloading = lambda model: None
    pretend_groups(config.parallel_config.tensor_parallel_size)
    with (
        set_current_vllm_config(config),
        set_default_torch_dtype(config.model_config.dtype),
        on_meta(),
    ):
        return loader.initialize_model(config)


def shorten(model_config: Any) -> None:
    """Keep the first layers: the plan is made already, and the rest repeats them."""
    text = model_config.hf_text_config
    kinds = list(getattr(text, "layer_types", None) or [])
    seen = max((kinds.index(kind) + 1 for kind in set(kinds)), default=0)
    text.num_hidden_layers = min(text.num_hidden_layers, max(LAYERS, seen))
    vision = getattr(model_config.hf_config, "vision_config", None)
    for name in ("depth", "num_hidden_layers", "vt_num_hidden_layers"):
        if isinstance(getattr(vision, name, None), int):
            setattr(vision, name, min(getattr(vision, name), VISION_LAYERS))
    if getattr(vision, "deepstack_visual_indexes", None):
        vision.deepstack_visual_indexes = [0]


def selection(config: Any, model: Any) -> dict[str, Any]:
    """Which backends the layers of `model` chose."""
    attention: Counter[str] = Counter()
    vision: Counter[str] = Counter()
    moe: Counter[str] = Counter()
    linear: Counter[str] = Counter()
    for layer in config.compilation_config.static_forward_context.values():
        choose = getattr(layer, "get_attn_backend", None)
        if choose is not None:
            name = _backend_name(choose())
            if name is not None:
                attention[name + _kind(layer)] += 1
    for module in model.modules():
        name = type(module).__name__
        if name == "MMEncoderAttention":
            vision[module.attn_backend.name] += 1
        method = getattr(module, "quant_method", None)
        if method is None:
            continue
        if hasattr(module, "moe_config") or "MoE" in type(method).__name__:
            moe[_expert_backend(method)] += 1
        elif hasattr(module, "weight") or hasattr(module, "input_size"):
            linear[_linear_kernel(method)] += 1
    return {
        "attention": dict(attention),
        "vision_attention": sorted(vision),
        "moe": sorted(moe),
        "linear": sorted(linear),
    }


def _backend_name(backend: Any) -> str | None:
    """As `--attention-backend` takes it; the class's own name differs, AITER_FA's is FLASH_ATTN.

    None for a cache that no attention runs on, as DeepSeek's indexer has.
    """
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    names = {member.get_path(): member.name for member in AttentionBackendEnum if member.value}
    for kind in backend.__mro__:  # chunked attention derives a class of its own
        name = names.get(f"{kind.__module__}.{kind.__qualname__}")
        if name is not None:
            return str(name)
    name = str(backend.get_name())  # no attention: a linear-attention layer's state
    return None if name.endswith("_INDEXER") else name


def _kind(layer: Any) -> str:
    """What of a layer's form its backend's choice depends on, in words."""
    window = getattr(layer, "sliding_window", None)
    return " (sliding window)" if window else ""


def _expert_backend(method: Any) -> str:
    """The name in vLLM's enumeration; the method's class where it has no choice."""
    for name, value in vars(method).items():
        if name.endswith("_backend") and isinstance(value, enum.Enum):
            return str(value.name)
    return type(method).__name__


def _linear_kernel(method: Any) -> str:
    scheme = getattr(method, "scheme", None)
    for holder in (method, scheme):
        for value in vars(holder).values() if holder is not None else ():
            if "Kernel" in type(value).__name__:
                return f"{type(method).__name__}: {type(value).__name__}"
    return type(method).__name__


def block_size(config: Any) -> int:
    """The block size that vLLM settles on once it knows the backends."""
    from vllm.config import set_current_vllm_config
    from vllm.platforms import current_platform

    with set_current_vllm_config(config):
        current_platform.update_block_size_for_backend(config)
    return int(config.cache_config.block_size)
