"""Writes made-up run records, to show what a report looks like; nothing in them was measured.

    python -m benchmarks.synthetic_record DIRECTORY

Every record is marked synthetic, and every report of one says so.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

from vllm_amdopt.run_record import (
    Arm,
    Conclusion,
    Judgement,
    Row,
    RunRecord,
    Table,
    new_record,
    save,
)

LOADS = (16, 32, 64, 128, 256)
ARMS = (
    Arm(
        "stock",
        {"VLLM_AMDOPT": "0", "HF_TOKEN": "made-up"},
        ("--max-model-len", "8192", "--max-num-batched-tokens", "8192"),
        evidence=("no line of vllm-amdopt in the log",),
    ),
    Arm(
        "plugin",
        {"VLLM_AMDOPT": "1", "HF_TOKEN": "made-up"},
        ("--max-model-len", "8192", "--max-num-batched-tokens", "8192"),
        evidence=("vllm-amdopt: plan 3f2a: AMDOPT_ATTN on, AMDOPT_GEMM on",),
    ),
)
MACHINE = {"host": "synthetic-host", "cpu": "made up", "gpus": ["a GPU that is not there"]}
SOFTWARE = {"vllm": "0.32.0", "vllm-amdopt": "0.1.0", "torch": "2.13.0", "rocm": "7.0"}
STAGES = {
    "imports_s": (9.1, 9.1),
    "configuration_s": (2.2, 2.3),
    "device_s": (3.4, 3.4),
    "weight_load_s": (71.2, 64.3),
    "memory_profiling_s": (70.0, 38.6),
    "compile_s": (27.0, 0.0),
    "graph_capture_s": (11.0, 10.9),
    "warmup_s": (98.4, 40.6),
    "other_s": (4.1, 4.0),
}
"""Seconds of both arms, shaped like a published table; the numbers mean nothing."""


def serving(
    seed: int = 7,
    blocks: int = 10,
    loads: tuple[int, ...] = LOADS,
    faster: float = 0.04,
    noise: float = 0.01,
    kind: str = "serving_ab",
    failing: bool = True,
) -> RunRecord:
    """An A/B record in which the second arm is `faster` (a share of throughput) at every load."""
    source = random.Random(seed)
    rows = []
    for block in range(blocks):
        order = ("AB", "BA")[block % 2]
        launch = [source.gauss(0, noise) for _ in ARMS]
        for load in source.sample(loads, len(loads)):
            for index, arm in enumerate(ARMS):
                level = {
                    "dataset": "random",
                    "input_len": 1024,
                    "output_len": 128,
                    "concurrency": load,
                }
                position = order.index("AB"[index])
                if failing and index == 1 and load == loads[-1] and block == 3:
                    reason = "<script>alert('the server died')</script> & exit code -9"
                    rows.append(
                        Row(block, arm.name, level, "error", order, position, reason=reason)
                    )
                    continue
                speed = launch[index] + source.gauss(0, noise) + (math.log1p(faster) * index)
                rows.append(
                    Row(
                        block,
                        arm.name,
                        level,
                        "ok",
                        order,
                        position,
                        metrics=_metrics(load, math.exp(speed), source, noise, index),
                    )
                )
    return new_record(
        kind,
        ARMS,
        rows=tuple(rows),
        title="Llama-3.1-8B, synthetic",
        machine=MACHINE,
        software=SOFTWARE,
        workload={"model": "/models/Llama-3.1-8B", "active_parameters": 8_030_000_000, "seed": 0},
        judgement=Judgement(
            "output_throughput",
            ("p99_itl_ms@64", "mean_ttft_ms"),
            slo={"p99_itl_ms": 80.0},
        ),
        commands=(
            "vllm-amdopt bench ab --model /models/Llama-3.1-8B --a stock:VLLM_AMDOPT=0 "
            "--b plugin:VLLM_AMDOPT=1 --workload random:1024/128 --concurrency 16,32,64,128,256 "
            "--blocks 10",
        ),
        synthetic=True,
    )


def _metrics(
    load: int, speed: float, source: random.Random, noise: float, arm: int
) -> dict[str, float]:
    """A server that saturates near a concurrency of 100."""

    def noisy(value: float, more: float = 1.0) -> float:
        return value * math.exp(source.gauss(0, noise * more))

    output_len, input_len, requests = 128, 1024, 10 * load
    throughput = 42.0 * speed * load / (1 + (load / 60) ** 3) ** (1 / 3)
    itl = 1000 * load / throughput * 0.93
    ttft = 1000 * load / throughput * 6
    e2el = ttft + itl * (output_len - 1)
    metrics = {
        "completed": float(requests),
        "failed": 0.0,
        "duration": requests * output_len / throughput,
        "request_throughput": throughput / output_len,
        "output_throughput": throughput,
        "total_token_throughput": throughput * (1 + input_len / output_len),
        "weights_gib": 14.99 + 0.02 * arm,
        "kv_cache_gib": 150.2 - 0.1 * arm,
        "kv_cache_tokens": 1_230_000.0 - 1000 * arm,
    }
    for name, value, tail in (
        ("ttft", ttft, 2.2),
        ("tpot", itl * 1.05, 1.4),
        ("itl", itl, 2.6),
        ("e2el", e2el, 1.25),
    ):
        metrics[f"mean_{name}_ms"] = noisy(value)
        metrics[f"p50_{name}_ms"] = noisy(value * 0.96)
        metrics[f"p99_{name}_ms"] = noisy(value * tail, 4.0)
    return metrics


def startup(seed: int = 3, blocks: int = 6) -> RunRecord:
    """Start-ups of both arms, cold and warm."""
    source = random.Random(seed)
    rows = []
    for block in range(blocks):
        order = ("AB", "BA")[block % 2]
        for mode, share in (("cold", 1.0), ("warm", 0.35), ("disk-cold", 0.5)):
            for index, arm in enumerate(ARMS):
                stages = {
                    name: seconds[index]
                    * (share if name != "weight_load_s" else 1.0)
                    * math.exp(source.gauss(0, 0.03))
                    for name, seconds in STAGES.items()
                }
                stages["total_s"] = sum(stages.values())
                stages["first_token_s"] = 0.4 * math.exp(source.gauss(0, 0.1))
                position = order.index("AB"[index])
                level = {"mode": mode}
                rows.append(Row(block, arm.name, level, "ok", order, position, metrics=stages))
    return new_record(
        "startup",
        ARMS,
        rows=tuple(rows),
        title="Llama-3.1-8B, synthetic",
        machine=MACHINE,
        software=SOFTWARE,
        workload={"model": "/models/Llama-3.1-8B"},
        judgement=Judgement("total_s"),
        commands=(
            "vllm-amdopt bench startup --model /models/Llama-3.1-8B --modes cold,warm,disk-cold",
        ),
        synthetic=True,
    )


def accuracy() -> RunRecord:
    """A finished table, as the accuracy tools write it."""
    head = ("Batch", "Context", "Mean KL", "p99 KL", "Max KL", "Same top-1", "Verdict")
    return new_record(
        "accuracy_logits",
        ARMS,
        title="Llama-3.1-8B, synthetic",
        tables=(
            Table(
                "plugin against stock, teacher-forced decode",
                head,
                (
                    ("1", "128", "1.2e-05", "9.8e-05", "4.1e-04", "99.9 %", "passed"),
                    ("64", "2048", "1.6e-05", "1.3e-04", "9.0e-04", "99.8 %", "passed"),
                ),
                note="The A/A floor is 1.1e-05.",
            ),
        ),
        conclusion=Conclusion(
            "passed", "Mean KL 1.4e-05 at a floor of 1.1e-05 and a limit of 1e-4."
        ),
        synthetic=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    save(serving(), directory / "record.json")
    save(startup(), directory / "startup.record.json")
    save(accuracy(), directory / "accuracy.record.json")
    print(f"written to {directory}: made-up numbers, marked synthetic")


if __name__ == "__main__":
    main()
