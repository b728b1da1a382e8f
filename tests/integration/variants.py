"""The trained Llama model under other attention: with a sliding window, with attention sinks.

Nothing is trained again. Both are architectures of vLLM's own that compute what Llama does but for
the attention, so the trained weights fit; a sliding window is only a line of the configuration.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.integration.offline import GQA, MODELS


def _derive(folder: Path, changes: dict[str, Any], more_weights: dict[str, torch.Tensor]) -> str:
    """The checkpoint in `folder`, with other settings and further weights; its path."""
    shutil.copytree(MODELS / GQA, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    if more_weights:
        weights = folder / "model.safetensors"
        save_file(load_file(weights) | more_weights, weights, metadata={"format": "pt"})
    return str(folder)


def with_windows(folder: Path, windows: Sequence[bool], size: int) -> str:
    """Llama whose layers see the last `size` tokens only, where `windows` says so of the layer."""
    return _derive(folder, _window_settings(windows, size), {})


def with_sinks(
    folder: Path, sinks: Sequence[Sequence[float]], windows: Sequence[bool], size: int
) -> str:
    """The same as Granite, which has sinks: `sinks` [layers][heads], logits beside the scores."""
    config = json.loads((MODELS / GQA / "config.json").read_text())
    granite = {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        # Granite's default is 1; Llama's scores are divided by the square root of the head size.
        "attention_multiplier": config["head_dim"] ** -0.5,
        "attention_sinks": True,
    }
    weights = {
        f"model.layers.{layer}.self_attn.sinks": torch.tensor(values, dtype=torch.bfloat16)
        for layer, values in enumerate(sinks)
    }
    return _derive(folder, granite | _window_settings(windows, size), weights)


def _window_settings(windows: Sequence[bool], size: int) -> dict[str, Any]:
    kinds = ["sliding_attention" if window else "full_attention" for window in windows]
    return {"layer_types": kinds, "sliding_window": size}
