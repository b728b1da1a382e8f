"""The facts of every shipped config, in one file that was read against the configs by eye.

After a change that is meant: write what `table()` returns to golden/model_facts.txt, and read
the difference.
"""

from __future__ import annotations

from pathlib import Path

from vllm_amdopt.policy.model_facts import ModelFacts, model_facts
from vllm_amdopt.policy.model_fixtures import fixture, fixture_names

GOLDEN = Path(__file__).resolve().parent / "golden" / "model_facts.txt"

FIELDS: dict[str, tuple[str, ...]] = {
    "": ("architecture", "model_type", "attention", "num_layers", "attention_layers"),
    "attention": ("num_heads", "num_kv_heads", "head_size", "kv_lora_rank", "qk_rope_head_dim"),
    "latent": ("q_lora_rank", "qk_nope_head_dim", "v_head_dim", "index_head_dim"),
    "window": ("sliding_window", "sliding_layers", "attention_chunk_size", "has_sinks"),
    "sizes": ("hidden_size", "intermediate_size", "vocab_size", "max_context", "has_vision"),
    "experts": (
        "num_experts",
        "experts_per_token",
        "moe_intermediate_size",
        "num_shared_experts",
        "first_dense_layers",
    ),
    "weights": (
        "dtype",
        "quantization",
        "weight_format",
        "weight_block_size",
        "weight_group_size",
        "unquantized_parts",
        "kv_scales",
    ),
}


ALWAYS = ("kv_scales", "weight_format", "dtype", "max_context")
"""Shown even where they are None; of the others, what is None, 0 or False is left out."""


def entry(name: str, model: ModelFacts) -> str:
    lines = [name]
    for topic, fields in FIELDS.items():
        given = [field for field in fields if field in ALWAYS or getattr(model, field)]
        values = " ".join(f"{field}={shown(getattr(model, field))}" for field in given)
        if values:
            lines.append(f"  {topic + ': ' if topic else ''}{values}")
    lines.append(
        f"  parameters: {billions(model.parameters)} in all, "
        f"{billions(model.active_parameters)} for one token"
    )
    return "\n".join(lines)


def shown(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value)) or "()"
    return str(value)


def billions(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.2f}e9"


def table() -> str:
    return "\n\n".join(entry(name, model_facts(fixture(name))) for name in fixture_names()) + "\n"


def test_facts_are_those_that_were_reviewed() -> None:
    assert table() == GOLDEN.read_text(encoding="utf-8")
