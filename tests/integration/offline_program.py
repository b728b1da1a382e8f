"""Runs vLLM jobs, one after the other, each in a process of its own that starts within seconds.

A program for `offline.py`, not a test. It imports vLLM once, then forks for every job, so that a
job begins with a fresh plugin, engine and device, but without the seconds that the imports take.
What is fixed at import is the platform, so one program serves jobs with the plugin active, or
inactive, or interpreted, never a mixture.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

PRELOADED = (
    "vllm.v1.engine.llm_engine",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.granite",
    "vllm.model_executor.models.deepseek_v2",
    "vllm.model_executor.models.qwen3_moe",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.attention.backends.mla.cpu_mla",
)
"""What a job would import anyway."""


_kept: list[Any] = []
"""Engines that end with their process: to shut one down is more garbage collection."""


def main() -> None:
    """One job per line of standard input, as JSON; one line "done" on standard output for each."""
    from vllm import LLM  # noqa: F401

    for module in PRELOADED:
        importlib.import_module(module)
    # vLLM collects garbage six times in a job, and would walk, and so copy, all that was imported.
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        job: dict[str, Any] = json.loads(line)
        child = os.fork()
        if child == 0:
            run_and_leave(job)
        os.waitpid(child, 0)
        print("done", flush=True)


def run_and_leave(job: dict[str, Any]) -> None:
    """Run the job with its output in `log` and its result in `result`; never returns."""
    with open(job["log"], "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    result: dict[str, Any] = {}
    try:
        os.environ.update(job["environment"])
        result = run(job)
    except BaseException as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"}
    finally:
        Path(job["result"]).write_text(json.dumps(result))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Load the model and answer the prompts, in as many rounds as the job has lists of prompts."""
    import torch
    from vllm import LLM, SamplingParams

    from vllm_amdopt.integration import faults

    # Eager as asked: vLLM compiles a function of its sampler all the same.
    torch._dynamo.config.disable = bool(job["arguments"]["enforce_eager"])
    llm = LLM(job["model"], **job["arguments"])
    if job["arguments"].get("tensor_parallel_size", 1) == 1:
        _kept.append(llm)
    sampling = SamplingParams(temperature=0, max_tokens=job["max_tokens"], logprobs=2)
    rounds = []
    for prompts in job["rounds"]:
        answers = llm.generate(prompts, sampling, use_tqdm=False)
        rounds.append(
            [
                {
                    "text": answer.outputs[0].text,
                    "token_ids": list(answer.outputs[0].token_ids),
                    "leads": leads(answer.outputs[0]),
                    "cached_tokens": answer.num_cached_tokens,
                }
                for answer in answers
            ]
        )
    config = llm.llm_engine.vllm_config
    return {
        "rounds": rounds,
        "block_size": config.cache_config.block_size,
        "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
        "plan": (config.additional_config or {}).get("amdopt"),
        "disabled": dict(faults._disabled),
        "launches": launches(),
    }


def leads(output: Any) -> list[float]:
    """By how much each token of the answer beat the second likeliest, in nats."""
    best = [
        sorted((entry.logprob for entry in step.values()), reverse=True) for step in output.logprobs
    ]
    return [first - second for first, second, *_ in best]


def launches() -> dict[str, int]:
    """Launches of each of our kernels on the emulated device, by kernel name; empty without one."""
    from vllm_amdopt.integration import cpu_engine

    counts = getattr(cpu_engine.kernel_device(), "counts", None) or {}
    return {
        name: item.launches if dataclasses.is_dataclass(item) else int(item["launches"])
        for name, item in counts.items()
    }


if __name__ == "__main__":
    main()
