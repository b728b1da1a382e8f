"""Situations to decide on: published models (the shipped configs), made-up machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm_amdopt.hardware import GIB, Hardware, virtual
from vllm_amdopt.policy.model_facts import ModelFacts, model_facts
from vllm_amdopt.policy.plan import Plan, Situation, Software, UserChoices, make_plan

CONFIGS = Path(__file__).resolve().parents[2] / "vllm_amdopt" / "policy" / "model_configs"
CURRENT_AITER = "0.1.21.post2"


def config(name: str) -> dict[str, Any]:
    """The published config.json of a model, without the note on its source."""
    record = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return dict(record["config"])


def facts(name: str) -> ModelFacts:
    return model_facts(config(name))


def instinct(gfx: str = "gfx942", host_gib: int | None = 2048) -> Hardware:
    """A server with eight GPUs."""
    return Hardware(
        kind="amd",
        gfx=gfx,
        device_count=8,
        device_memory_bytes=192 * GIB,
        host_memory_bytes=None if host_gib is None else host_gib * GIB,
    )


VIRTUAL = virtual("gfx942", host_memory_bytes=64 * GIB)
INTERPRETER = virtual("interpreter", host_memory_bytes=64 * GIB)
REFERENCE = virtual("reference", host_memory_bytes=64 * GIB)
NVIDIA = Hardware(kind="nvidia", device_count=1, host_memory_bytes=512 * GIB)
NOTHING = Hardware(kind="cpu", host_memory_bytes=64 * GIB)


def situation(
    model: str | ModelFacts | None = "llama-3.1-8b",
    hardware: Hardware = VIRTUAL,
    *,
    environment: dict[str, str] | None = None,
    vllm: str | None = "0.32.0",
    triton: str | None = "3.9.0",
    aiter: str | None = None,
    missing_seams: dict[str, str] | None = None,
    measured_wins: dict[str, str] | None = None,
    patches: tuple[str, ...] = (),
    **choices: Any,
) -> Situation:
    return Situation(
        model=facts(model) if isinstance(model, str) else model,
        hardware=hardware,
        choices=UserChoices(**choices),
        software=Software(
            vllm=vllm,
            triton=triton,
            aiter=aiter,
            missing_seams=missing_seams or {},
            patches=frozenset(patches),
        ),
        environment=environment or {},
        measured_wins=measured_wins or {},
    )


def plan(*arguments: Any, **options: Any) -> Plan:
    return make_plan(situation(*arguments, **options))
