"""Serve a test model over HTTP and read its log: what the server tests share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tests.integration.offline import MODELS, Jobs, questions
from tests.models.evaluate import NEEDED_ARGUMENTS
from tests.serving import Server

# Eight and more requests at once, of 64 to 165 tokens; steps of 96 tokens cut the longer ones.
PROMPTS = [item.prompt for item in questions(5)]
CHUNKED = ("--max-num-batched-tokens", "96", "--max-num-seqs", "12")


def serve(
    model: str,
    *,
    plugin: str | None = None,
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> tuple[list[tuple[int, ...]], str]:
    """The token ids of all answers, asked for at once, and the server's log."""
    with Server(
        MODELS / model,
        plugin=plugin,
        environment=environment,
        arguments=("--enforce-eager", *needed(model), *arguments),
    ) as server:
        answers = server.complete_together(PROMPTS, max_tokens=8)
        return [answer.token_ids for answer in answers], server.log


def needed(model: str) -> list[str]:
    """What the model needs on both arms, as options of `vllm serve`."""
    options: list[str] = []
    for name, value in NEEDED_ARGUMENTS[model].items():
        options += [f"--{name.replace('_', '-')}", json.dumps(value)]
    return options


def stock(jobs: Jobs, model: str) -> list[tuple[int, ...]]:
    result = jobs.stock(model, PROMPTS)
    assert result.error is None, result.log
    return result.tokens()


def states(log: str) -> dict[str, str]:
    """Feature or default -> on or off, from the plan's table in a server's log."""
    rows: dict[str, str] = {}
    for line in log.splitlines():
        words = line.partition("] ")[2].split()
        if len(words) > 2 and words[1] in ("on", "off"):
            rows[words[0]] = words[1]
    return rows


def only(*names: str) -> dict[str, str]:
    """What `states` reads where these are on and the other rows of a CPU's table are off."""
    features = ("attention", "mla", "gemm", "all_reduce")
    rules = ("aiter", "attention_order", "mla_block_size", "kv_offload")
    return {name: "on" if name in names else "off" for name in (*features, *rules)}
