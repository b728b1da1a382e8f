"""What a person wants to know before they deploy a model: the plan and what comes of it.

`explain` puts together the plan, what vLLM selects without and with it, the memory on each GPU, and
the commands to run. Pure, like the plan; it only puts together and decides nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vllm_amdopt.hardware import GIB
from vllm_amdopt.policy import moe_selection, selection
from vllm_amdopt.policy.command_line import ServeArguments, command_by_hand, command_with_plugin
from vllm_amdopt.policy.memory import MemoryEstimate, estimate, layout_problem
from vllm_amdopt.policy.plan import Plan, Situation, make_plan
from vllm_amdopt.policy.serving_rules import ENTRIES

_LAYOUTS = (1, 2, 4, 8, 16)
_UTILIZATION = 0.92  # vLLM's default gpu_memory_utilization, config/cache.py


@dataclass(frozen=True)
class Outcome:
    """What vLLM alone does with something, and what it does under the plan."""

    stock: str
    planned: str

    @property
    def changed(self) -> bool:
        """Whether the plan makes a difference."""
        return self.stock != self.planned


@dataclass(frozen=True)
class Explanation:
    """A plan with all that it leads to. `problems`: why it cannot run as asked, and what to do."""

    plan: Plan
    model: str
    situation: Situation
    outcomes: Mapping[str, Outcome]
    memory: MemoryEstimate | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    with_plugin: str
    by_hand: str
    sources: Mapping[str, str]

    def to_dict(self) -> dict[str, object]:
        """As JSON-able values."""
        memory = self.memory
        return {
            **self.plan.to_dict(),
            "model_source": self.model,
            "outcomes": {
                name: {"stock": outcome.stock, "planned": outcome.planned}
                for name, outcome in self.outcomes.items()
            },
            "memory": None
            if memory is None
            else {
                "weight_bytes": memory.weight_bytes,
                "kv_bytes_per_token": memory.kv_bytes_per_token,
                "budget_bytes": memory.budget_bytes,
                "reserve_bytes": memory.reserve_bytes,
                "kv_capacity_tokens": memory.kv_capacity_tokens,
                "fits": memory.fits,
                "short_by_bytes": memory.short_by_bytes,
                "context_fits": memory.context_fits,
                "assumptions": list(memory.assumptions),
            },
            "problems": list(self.problems),
            "explain_notes": list(self.notes),
            "commands": {"with_plugin": self.with_plugin, "by_hand": self.by_hand},
            "sources": dict(self.sources),
        }


def explain(
    situation: Situation,
    arguments: ServeArguments,
    model: str,
    *,
    served: str | None = None,
    notes: tuple[str, ...] = (),
) -> Explanation:
    """Everything about `situation`.

    `model` is what the user called it, `served` what the command serves, if that is another name.
    """
    plan = make_plan(situation)
    attention = selection.planned(situation, plan)
    problems = list(plan.refusals)
    impossible = _impossible(situation, situation.choices.tensor_parallel_size)
    memory = None if impossible else _memory(situation)
    problems += [impossible] if impossible else _too_small(situation, memory)
    remarks = list(notes)
    if "attention_order" in plan.settings and attention.name is not None and not problems:
        remarks.append(
            f"by hand, --attention-backend {attention.name} stands for the plan's order of "
            "backends: vLLM then ends if a layer cannot use it, where the order goes on to the next"
        )
    return Explanation(
        plan=plan,
        model=model,
        situation=situation,
        outcomes=_outcomes(situation, plan, attention),
        memory=memory,
        problems=tuple(problems),
        notes=tuple(remarks),
        with_plugin=command_with_plugin(served or model, arguments),
        by_hand=command_by_hand(served or model, arguments, plan.settings, attention.name),
        sources={entry.name: getattr(entry, "source", "") for entry in ENTRIES},
    )


def _outcomes(
    situation: Situation, plan: Plan, attention: selection.Selection
) -> dict[str, Outcome]:
    if situation.hardware.kind != "amd" or situation.model is None:
        return {}  # only vLLM's ROCm selection is retold
    outcomes = {"attention": Outcome(_attention(selection.stock(situation)), _attention(attention))}
    without = moe_selection.predict_now(replace(situation, values={}))
    planned = moe_selection.predict_now(replace(situation, values=plan.settings))
    if without != moe_selection.ExpertSelection():
        outcomes["experts"] = Outcome(_experts(without), _experts(planned))
    offload = plan.settings.get("kv_offloading_size")
    theirs = "as you configured it" if situation.choices.kv_offload else "off"
    outcomes["KV offload"] = Outcome(
        theirs, theirs if offload is None else f"{offload:g} GiB of host memory"
    )
    return outcomes


def _attention(found: selection.Selection) -> str:
    if found.raises:
        reasons = "; ".join(
            f"{name}: {', '.join(why)}" for name, why in found.refusals.items() if why
        )
        return f"ends with ValueError ({reasons})"
    if found.name is None:
        return f"not predicted ({found.why})" if found.why else "not predicted"
    return found.name if found.block_size is None else f"{found.name}, block {found.block_size}"


def _experts(found: moe_selection.ExpertSelection) -> str:
    if found.raises is not None:
        return f"ends with an error ({found.raises})"
    return found.backend or "not predicted"


def _impossible(situation: Situation, ranks: int) -> str | None:
    """Why the model cannot be laid out over `ranks` tensor-parallel ranks, or None."""
    choices = situation.choices
    if situation.model is None:
        return None
    return layout_problem(
        situation.model,
        tensor_parallel_size=ranks,
        expert_parallel=choices.expert_parallel,
        data_parallel_size=choices.data_parallel_size,
        pipeline_parallel_size=choices.pipeline_parallel_size,
    )


def _memory(situation: Situation, ranks: int | None = None) -> MemoryEstimate | None:
    if situation.model is None:
        return None
    choices = situation.choices
    return estimate(
        situation.model,
        tensor_parallel_size=ranks or choices.tensor_parallel_size,
        expert_parallel=choices.expert_parallel,
        data_parallel_size=choices.data_parallel_size,
        pipeline_parallel_size=choices.pipeline_parallel_size,
        kv_cache_dtype=choices.kv_cache_dtype,
        gpu_memory_bytes=situation.hardware.device_memory_bytes,
        gpu_memory_utilization=choices.gpu_memory_utilization or _UTILIZATION,
        context=choices.max_model_len,
    )


def _too_small(situation: Situation, memory: MemoryEstimate | None) -> list[str]:
    """That the model or one request does not fit, by how much, and what would fit."""
    if memory is None or memory.fits is None:
        return []
    ranks = situation.choices.tensor_parallel_size
    if not memory.fits:
        short = f"short of {memory.short_by_bytes / GIB:.1f} GiB"
        where = "the GPU" if ranks == 1 else f"each of {ranks} GPUs"
        return [f"the weights do not fit: {where} is {short}; {_larger(situation)}"]
    if memory.context_fits is False:
        return [
            f"one request of the whole context ({situation.context} tokens) does not fit into the "
            f"KV cache: give --max-model-len {memory.kv_capacity_tokens} or less, or more GPUs"
        ]
    return []


def _larger(situation: Situation) -> str:
    """The tensor-parallel size that the model fits with, as advice."""
    shorter = ""
    for size in (size for size in _LAYOUTS if size > situation.choices.tensor_parallel_size):
        memory = None if _impossible(situation, size) else _memory(situation, size)
        if memory is None or not memory.fits:
            continue
        if memory.context_fits is not False:
            return f"--tensor-parallel-size {size} is estimated to fit{shorter}"
        if not shorter and memory.kv_capacity_tokens:
            shorter = f", or {size} with --max-model-len {memory.kv_capacity_tokens} or less"
    return "use a checkpoint in a smaller format, or GPUs with more memory"
