"""What a check of `doctor` is and says. The checks themselves are in the `*_checks` modules."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vllm_amdopt.commands.facts import Facts

Severity = Literal["wrong", "advice", "fine"]


@dataclass(frozen=True)
class Finding:
    """`wrong`: does not work, or not correctly, until mended; `advice`: works, but could be better.

    `remedy` is one sentence that says what to do; empty where nothing is to do.
    """

    severity: Severity
    sentence: str
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """`judge` is a pure function; None means that the facts do not allow a judgement.

    A check that `needs_amd` is left out on a machine without an AMD GPU.
    """

    name: str
    judge: Callable[[Facts], Finding | None]
    needs_amd: bool = False


def wrong(sentence: str, remedy: str) -> Finding:
    return Finding("wrong", sentence, remedy)


def advice(sentence: str, remedy: str) -> Finding:
    return Finding("advice", sentence, remedy)


def fine(sentence: str) -> Finding:
    return Finding("fine", sentence)
