"""Trains the three small test models on the CPU and writes them in Hugging Face format.

Not a general trainer: two generated tasks (tasks.py), three fixed shapes, one fixed seed each.

    python -m tests.models.train [--model NAME ...] [--out DIR] [--minutes M] [--threads N]

Needs torch, transformers, tokenizers and safetensors; no GPU, no network. `--steps 0` writes
untrained weights of the right shapes.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.models.tasks import (
    ANSWER_LENGTH,
    COPY_LENGTH,
    END,
    RECALL_PAIRS,
    training_sequence,
)

CHECKPOINTS = Path(__file__).parent / "checkpoints"

PAD, EOS, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
VOCABULARY = {token: index for index, token in enumerate([PAD, EOS, UNKNOWN, *CHARACTERS])}
#: Rounded up so that tensor parallelism splits it evenly; the ids from 99 on are never used.
VOCABULARY_SIZE = 128
#: What PyTorch's cross-entropy ignores.
NOT_SCORED = -100

BATCH_SIZE = 16
#: Contexts grow while the moving share of right answers is above this, by this share of the way.
GROW_ABOVE = 0.93
GROWTH = 0.01
SETTLE_STEPS = 200

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)

SHARED = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "pad_token_id": VOCABULARY[PAD],
    "bos_token_id": None,
    "eos_token_id": VOCABULARY[EOS],
    # Wider than the 0.02 of large models: at 128 wide that would start training on a plateau.
    "initializer_range": 0.06,
    "dtype": "bfloat16",
}


@dataclass(frozen=True)
class Recipe:
    """How one model is made: its shape, seed and training length."""

    build: Callable[[], nn.Module]
    seed: int
    steps: int
    learning_rate: float


def _llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(**SHARED, num_key_value_heads=2, head_dim=64, intermediate_size=256)
    )


def _qwen3_moe() -> nn.Module:
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SHARED,
            num_key_value_heads=2,
            head_dim=64,
            intermediate_size=256,
            moe_intermediate_size=64,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
        )
    )


def _deepseek() -> nn.Module:
    # 512 + 64 is what DeepSeek-V3 itself has, and the only latent size vLLM's CPU kernel knows.
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SHARED,
            num_key_value_heads=8,
            kv_lora_rank=512,
            qk_rope_head_dim=64,
            qk_nope_head_dim=32,
            v_head_dim=32,
            q_lora_rank=64,
            intermediate_size=256,
            moe_intermediate_size=64,
            n_routed_experts=8,
            n_shared_experts=1,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            topk_method="noaux_tc",
            scoring_func="sigmoid",
            norm_topk_prob=True,
            routed_scaling_factor=1.5,
            first_k_dense_replace=1,
            num_nextn_predict_layers=0,
        )
    )


RECIPES = {
    "llama-gqa": Recipe(_llama, seed=1, steps=4000, learning_rate=3e-3),
    "qwen3-moe": Recipe(_qwen3_moe, seed=2, steps=4000, learning_rate=3e-3),
    "deepseek-mla-moe": Recipe(_deepseek, seed=3, steps=4000, learning_rate=3e-3),
}


def build_tokenizer() -> Tokenizer:
    """One token per character of printable ASCII; anything else is the unknown token."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([PAD, EOS, UNKNOWN])
    return tokenizer


def write_checkpoint(model: nn.Module, directory: Path) -> None:
    """Writes config, bf16 weights, tokenizer and generation settings that vLLM loads as they are.

    `save_pretrained` splits fused expert tensors back into the per-expert names of the format.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.to(torch.bfloat16)
    config: Any = model.config
    config.dtype = torch.bfloat16
    model.save_pretrained(directory)  # type: ignore[operator]
    model.to(torch.float32)
    model.load_state_dict(state)
    build_tokenizer().save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 1024,
            "clean_up_tokenization_spaces": False,
            "add_bos_token": False,
            "pad_token": PAD,
            "eos_token": EOS,
            "unk_token": UNKNOWN,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _write_json(
        directory / "generation_config.json",
        {
            "do_sample": False,
            "eos_token_id": VOCABULARY[EOS],
            "pad_token_id": VOCABULARY[PAD],
        },
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


_IDS = {**VOCABULARY, END: VOCABULARY[EOS], "": NOT_SCORED}


def _encode(characters: Iterable[str]) -> list[int]:
    return [_IDS[character] for character in characters]


def training_batch(rng: random.Random, grown: float, batch_size: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels [batch, length]; `NOT_SCORED` where nothing is scored or padded.

    Even rows copy, odd rows recall. grown: 0 gives the shortest contexts, 1 those of the held-out
    items.
    """
    most_pairs = round(8 + grown * (RECALL_PAIRS[1] - 8))
    longest_copy = round(12 + grown * (COPY_LENGTH[1] - 12))
    pairs = rng.randint(max(ANSWER_LENGTH, most_pairs // 3), most_pairs)
    length = rng.randint(longest_copy // 2, longest_copy)
    sequences = [
        training_sequence(rng, "recall", pairs)
        if row % 2
        else training_sequence(rng, "copy", length)
        for row in range(batch_size)
    ]
    width = max(len(sequence.text) for sequence in sequences)
    tokens = torch.full((batch_size, width), VOCABULARY[PAD])
    labels = torch.full((batch_size, width), NOT_SCORED)
    for row, sequence in enumerate(sequences):
        count = len(sequence.text)
        tokens[row, :count] = torch.tensor(_encode(sequence.text))
        labels[row, :count] = torch.tensor(_encode(sequence.targets))
    return tokens, labels


class RouterWatch:
    """Keeps the experts of the mixture layers in use, by the means each architecture has.

    DeepSeek: the selection bias of an underused expert rises, that of an overused one falls (it
    takes no part in the gradient). Qwen3: the usual load-balancing loss.
    """

    def __init__(self, model: nn.Module) -> None:
        self.loads: list[tuple[nn.Module, Tensor, Tensor]] = []
        for name, module in model.named_modules():
            if name.endswith("mlp.gate"):
                module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        logits, _weights, chosen = output
        share = torch.bincount(chosen.reshape(-1), minlength=logits.shape[-1]) / chosen.numel()
        self.loads.append((module, share, logits))

    def balance(self) -> Tensor:
        """The balancing loss of the last forward pass (0 for DeepSeek), and the bias updates."""
        loss = torch.zeros(())
        for module, share, logits in self.loads:
            bias = getattr(module, "e_score_correction_bias", None)
            if bias is not None:
                bias += 0.002 * torch.sign(1 / len(share) - share)
            else:
                mean_probability = logits.softmax(-1).mean(0)
                loss = loss + 0.01 * len(share) * (share * mean_probability).sum()
        self.loads.clear()
        return loss


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]


def train(name: str, recipe: Recipe, most_steps: int) -> Any:
    """Trains one model in float32 and returns it.

    Contexts start short, where steps are cheap and the look-up is found soonest, and grow while
    both tasks are answered right. At full length the learning rate runs out over `SETTLE_STEPS`.
    """
    torch.manual_seed(recipe.seed)
    rng = random.Random(f"training/{recipe.seed}")
    model: Any = recipe.build().float()
    router = RouterWatch(model)
    optimizer = torch.optim.AdamW(
        parameter_groups(model), lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True
    )
    started = time.monotonic()
    grown, settled, right = 0.0, 0, {"copy": 0.0, "recall": 0.0}
    for step in range(1, most_steps + 1):
        settled += grown >= 1.0
        factor = min(1.0, step / 50, 1.02 - settled / SETTLE_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        tokens, labels = training_batch(rng, grown, BATCH_SIZE)
        starts = torch.tensor(
            [rng.randint(0, SHARED["max_position_embeddings"] - tokens.shape[1]) for _ in tokens]
        )
        positions = starts[:, None] + torch.arange(tokens.shape[1])
        hidden = model.model(input_ids=tokens, position_ids=positions, use_cache=False)[0]
        wanted = labels != NOT_SCORED
        logits = model.lm_head(hidden[wanted])
        loss = nn.functional.cross_entropy(logits, labels[wanted])
        (loss + router.balance()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

        correct = (logits.argmax(-1) == labels[wanted]).float()
        recall_rows = (torch.arange(len(tokens))[:, None].expand_as(wanted)[wanted] % 2).bool()
        for task, rows in (("copy", ~recall_rows), ("recall", recall_rows)):
            right[task] += 0.1 * (correct[rows].mean().item() - right[task])
        if min(right.values()) > GROW_ABOVE:
            grown = min(1.0, grown + GROWTH)
        if step % 50 == 0 or settled == SETTLE_STEPS:
            print(
                f"{name} step {step} {time.monotonic() - started:.0f} s loss {loss.item():.4f} "
                f"right: copy {right['copy']:.3f} recall {right['recall']:.3f} "
                f"contexts grown {grown:.2f}",
                flush=True,
            )
        if settled == SETTLE_STEPS:
            break
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=RECIPES, default=[*RECIPES])
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    parser.add_argument("--steps", type=int, help="instead of the recipe's own number")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.model:
        recipe = RECIPES[name]
        started = time.monotonic()
        steps = recipe.steps if options.steps is None else options.steps
        model = train(name, recipe, steps)
        write_checkpoint(model, options.out / name)
        print(f"{name}: {time.monotonic() - started:.0f} s, written to {options.out / name}")


if __name__ == "__main__":
    main()
