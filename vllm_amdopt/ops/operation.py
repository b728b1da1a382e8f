"""What an operation is: a plain-PyTorch reference and implementations that may refuse.

This module holds no mathematics and launches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

REFERENCE = "reference"


class RefusedError(ValueError):
    """An implementation was called for something it refuses; the message is its sentence."""


@dataclass(frozen=True)
class Implementation:
    """One way to carry out an operation.

    `run` has the reference's signature. `refusal` takes the operation's facts as keywords (sizes,
    dtypes, `gfx`) and returns None where the implementation applies, otherwise one sentence that
    says why not and what to do.
    """

    name: str
    run: Callable[..., Any]
    refusal: Callable[..., str | None]


@dataclass(frozen=True)
class Choice:
    """The first implementation that applies, or None, and the sentence of each one that refused."""

    implementation: Implementation | None
    refusals: Mapping[str, str]


@dataclass(frozen=True)
class Operation:
    """An operation is its reference; implementations are tried in the order given."""

    name: str
    reference: Callable[..., Any]
    implementations: tuple[Implementation, ...]

    def choose(self, **facts: Any) -> Choice:
        """The first implementation without a refusal for these facts, and every refusal met."""
        refusals: dict[str, str] = {}
        chosen: Implementation | None = None
        for implementation in self.implementations:
            refusal = implementation.refusal(**facts)
            if refusal is not None:
                refusals[implementation.name] = refusal
            elif chosen is None:
                chosen = implementation
        return Choice(chosen, refusals)

    def run(self, name: str) -> Callable[..., Any]:
        """The function of the implementation called `name`; "reference" is the reference itself."""
        if name == REFERENCE:
            return self.reference
        for implementation in self.implementations:
            if implementation.name == name:
                return implementation.run
        names = ", ".join([REFERENCE, *(item.name for item in self.implementations)])
        raise ValueError(f"{self.name} has no implementation {name!r}; choose one of: {names}.")
