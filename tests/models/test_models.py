"""The committed test models and their tasks: files, shapes, items, text. It runs no model."""

from __future__ import annotations

import json
import random
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.models.tasks import (
    ANSWER_LENGTH,
    COPY_LENGTH,
    END,
    RECALL_PAIRS,
    TASKS,
    Item,
    held_out,
    recall_conversation,
    training_sequence,
)

CHECKPOINTS = Path(__file__).parent / "checkpoints"
MODELS = {
    "llama-gqa": "LlamaForCausalLM",
    "qwen3-moe": "Qwen3MoeForCausalLM",
    "deepseek-mla-moe": "DeepseekV3ForCausalLM",
}
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
SIZE_LIMIT_BYTES = 8_000_000


def read_config(name: str) -> dict[str, Any]:
    return json.loads((CHECKPOINTS / name / "config.json").read_text(encoding="utf-8"))


def tensor_shapes(name: str) -> dict[str, tuple[str, list[int]]]:
    """dtype and shape of every tensor, from the header of the safetensors file."""
    with (CHECKPOINTS / name / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {tensor: (entry["dtype"], entry["shape"]) for tensor, entry in header.items()}


def tokenizer_of(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINTS / name / "tokenizer.json"))


def follow(item: Item) -> str:
    """The right answer of an item, worked out from its prompt alone."""
    if item.task == "copy":
        text, repeated = item.prompt[1:].split("]")
        assert text.startswith(repeated)
        return text[len(repeated) :]
    pairs = dict(re.findall(r"[{,](.)(.)", item.prompt))
    answer, key = "", item.prompt[-1]
    while key in pairs:
        key = pairs[key]
        answer += key
    return answer


@pytest.mark.parametrize("name", MODELS)
def test_checkpoint_has_exactly_the_files_vllm_reads(name: str) -> None:
    assert {path.name for path in (CHECKPOINTS / name).iterdir()} == FILES
    assert read_config(name)["architectures"] == [MODELS[name]]


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_bf16_and_cover_every_layer(name: str) -> None:
    tensors = tensor_shapes(name)
    assert {dtype for dtype, _ in tensors.values()} == {"BF16"}
    layers = {int(match[1]) for tensor in tensors if (match := re.search(r"layers\.(\d+)", tensor))}
    config = read_config(name)
    assert layers == set(range(config["num_hidden_layers"]))
    assert tensors["model.embed_tokens.weight"][1] == [config["vocab_size"], config["hidden_size"]]
    assert config["max_position_embeddings"] >= 1024


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3-moe"])
def test_grouped_query_models_have_power_of_two_heads(name: str) -> None:
    config, tensors = read_config(name), tensor_shapes(name)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (8, 2)
    assert config["head_dim"] == 64
    assert tensors["model.layers.0.self_attn.k_proj.weight"][1] == [2 * 64, config["hidden_size"]]
    assert ("model.layers.0.self_attn.q_norm.weight" in tensors) == (name == "qwen3-moe")


def test_deepseek_latent_size_is_the_one_the_cpu_kernel_knows() -> None:
    config, tensors = read_config("deepseek-mla-moe"), tensor_shapes("deepseek-mla-moe")
    assert config["kv_lora_rank"] + config["qk_rope_head_dim"] == 576
    latent = tensors["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"][1]
    assert latent == [576, config["hidden_size"]]


def test_mixture_models_keep_one_tensor_per_expert() -> None:
    for name, layer in (("qwen3-moe", 0), ("deepseek-mla-moe", 1)):
        tensors = tensor_shapes(name)
        experts = {
            int(match[1])
            for tensor in tensors
            if (match := re.match(rf"model\.layers\.{layer}\.mlp\.experts\.(\d+)\.up_proj", tensor))
        }
        assert experts == set(range(8)), name
    config = read_config("deepseek-mla-moe")
    assert config["topk_method"] == "noaux_tc"
    experts_per_group = config["n_routed_experts"] // config["n_group"]
    assert config["num_experts_per_tok"] <= config["topk_group"] * experts_per_group
    assert "model.layers.0.mlp.up_proj.weight" in tensor_shapes("deepseek-mla-moe")


def test_all_checkpoints_together_are_small_enough_to_commit() -> None:
    files = [path for path in CHECKPOINTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < SIZE_LIMIT_BYTES


def test_held_out_items_never_change() -> None:
    recall, copy = held_out("recall", 1)[0], held_out("copy", 1)[0]
    assert recall.prompt.startswith("{J1,I3,Tq,fb,ET,") and recall.prompt.endswith(",gn}?x")
    assert recall.answer == "BgnFI3"
    assert copy.prompt.startswith("[vhNLjeU7") and copy.answer == "8auMHq"


@pytest.mark.parametrize("task", TASKS)
def test_held_out_items_are_answerable_from_their_prompt_alone(task: str) -> None:
    items = held_out(task, 128)
    assert items[:64] == held_out(task, 64)
    assert len({item.prompt for item in items}) == len(items)
    for item in items:
        assert follow(item) == item.answer
        assert len(item.answer) == ANSWER_LENGTH
        assert 64 <= len(item.prompt) <= 200


def test_questions_of_a_conversation_share_their_list() -> None:
    items = recall_conversation(random.Random(5), 30, 5)
    assert len({item.prompt.partition("?")[0] for item in items}) == 1
    assert len({item.prompt for item in items}) == 5
    assert all(follow(item) == item.answer for item in items)
    with pytest.raises(ValueError, match="30 pairs allow 5 questions, not 6"):
        recall_conversation(random.Random(5), 30, 6)


@pytest.mark.parametrize("task", TASKS)
def test_training_targets_are_the_characters_that_follow(task: str) -> None:
    longest = (RECALL_PAIRS if task == "recall" else COPY_LENGTH)[1]
    for size in (6, 13, longest):
        sequence = training_sequence(random.Random(size), task, size)
        assert len(sequence.targets) == len(sequence.text) <= 1024
        following = [*sequence.text[1:], ""]
        scored = [pair for pair in zip(sequence.targets, following, strict=True) if pair[0]]
        assert all(target == after for target, after in scored)
        assert sum(target == END for target, _ in scored) == sequence.text.count(END)


@pytest.mark.parametrize("name", MODELS)
def test_tokenizer_round_trip(name: str) -> None:
    tokenizer = tokenizer_of(name)
    texts = ["a b\n~", *(item.prompt + item.answer for task in TASKS for item in held_out(task, 4))]
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text
    assert tokenizer.get_vocab_size() <= read_config(name)["vocab_size"]


@pytest.mark.parametrize("name", MODELS)
def test_end_token_is_the_same_everywhere(name: str) -> None:
    settings = json.loads((CHECKPOINTS / name / "tokenizer_config.json").read_text())
    end = tokenizer_of(name).token_to_id(settings["eos_token"])
    generation = json.loads((CHECKPOINTS / name / "generation_config.json").read_text())
    assert read_config(name)["eos_token_id"] == generation["eos_token_id"] == end
