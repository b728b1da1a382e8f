"""`explain` for the deployments that people ask about, as text files that were read by eye.

After a change that is meant: `python -m tests.policy.test_golden_plans --write`, and read the
difference as a person would who deploys the model.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from vllm_amdopt.commands.explain import add_explain_arguments, explanation
from vllm_amdopt.policy.explanation_text import as_text

PLANS = Path(__file__).resolve().parent / "golden" / "plans"
SOFTWARE = ("--vllm", "0.32.0", "--aiter", "0.1.21.post2")
MACHINE = (*SOFTWARE, "--host-memory", "2048")
PASTED = "VLLM_ROCM_USE_AITER=0 VLLM_USE_TRITON_FLASH_ATTN=0 vllm serve x --block-size 1"


@dataclass(frozen=True)
class Case:
    """One deployment; `more` comes after MACHINE and wins."""

    model: str
    gpu: str
    ranks: int
    what: str = ""
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its file."""
        parts = (self.model, self.gpu, f"tp{self.ranks}", self.what)
        return "-".join(part for part in parts if part).lower()

    @property
    def arguments(self) -> tuple[str, ...]:
        """What stands behind `vllm-amdopt explain`."""
        return (self.model, "--gpu", self.gpu, "--tp", str(self.ranks), *MACHINE, *self.more)


WITHOUT_AITER = ("--aiter", "none")
CASES = (
    Case("deepseek-v3", "MI325X", 8),
    Case("llama-3.1-405b-fp8", "MI325X", 8),
    Case("qwen3-vl-235b", "MI325X", 8),
    Case("kimi-k2.5", "MI325X", 4),
    Case("kimi-k2.5", "MI325X", 8, "pasted", ("--serve-args", PASTED)),
    Case("deepseek-v3.2", "MI355X", 8),
    Case("deepseek-v3.2", "MI355X", 8, "without-aiter", WITHOUT_AITER),
    Case("qwen3-235b-a22b-fp8", "MI300X", 8),
    Case("qwen3-235b-a22b-fp8", "MI300X", 8, "ep", ("--ep",)),
    Case("gpt-oss-120b", "MI355X", 8),
    Case("glm-5", "MI355X", 8),
    Case("minimax-m2", "MI300X", 4),
    Case("mixtral-8x7b", "MI300X", 2),
    Case("gemma-3-27b", "MI300X", 1),
    Case("qwen3-next-80b", "MI300X", 4),
    Case("llama-3.1-8b", "gfx1201", 1),
    Case("llama-3.1-405b", "MI300X", 1),
    Case("qwen3-32b", "MI300X", 3),
)


def rendered(case: Case) -> str:
    """What the command prints, without the plugin's version and the digest that goes with it."""
    parser = argparse.ArgumentParser()
    add_explain_arguments(parser)
    found = explanation(parser.parse_args(case.arguments), {})
    text = as_text(found)
    return text.replace(
        f"vllm-amdopt {found.plan.plugin_version}: plan {found.plan.digest} for",
        "vllm-amdopt VERSION: plan DIGEST for",
        1,
    )


def golden(case: Case) -> str:
    """The file's whole text: the command and what it prints."""
    words = (f'"{word}"' if " " in word else word for word in case.arguments)
    return f"$ vllm-amdopt explain {' '.join(words)}\n{rendered(case)}\n"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_plan_is_the_one_that_was_read(case: Case) -> None:
    path = PLANS / f"{case.name}.txt"
    reviewed = path.read_text(encoding="utf-8") if path.exists() else ""
    changed = difflib.unified_diff(
        reviewed.splitlines(), golden(case).splitlines(), "read by eye", "now", lineterm="", n=2
    )
    lines = "\n".join(changed)
    assert not lines, f"{path.name} differs; renew it if that is meant:\n{lines}"


def test_there_are_no_other_files() -> None:
    assert sorted(path.stem for path in PLANS.iterdir()) == sorted(case.name for case in CASES)


def write() -> None:
    """Renew all files."""
    PLANS.mkdir(parents=True, exist_ok=True)
    for path in PLANS.glob("*.txt"):
        path.unlink()
    for case in CASES:
        (PLANS / f"{case.name}.txt").write_text(golden(case), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.policy.test_golden_plans --write")
    write()
