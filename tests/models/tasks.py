"""The two generated tasks of the small test models: prompts and their one right answer.

Plain text and the standard library only, so a server test, the demo and the training script can all
use it. It is not a benchmark of language ability: it tells a right attention kernel from a wrong
one, because every answer character has to be looked up in the context.

`recall`: a list of one-letter keys and one-digit values, then six of the keys; the answer is their
values, in the order asked::

    {q7,b2,Z9, ... ,c1}?Zcqbxm=      ->  917240

`copy`: a string of different characters between brackets, then the same string again but for its
last six characters; the answer is those six::

    [x7Qa ... LmZ9tK]x7Qa ... L      ->  mZ9tK... (six characters)

In both the answer is followed by the end token. One character is one token.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from typing import Final, Literal

Task = Literal["recall", "copy"]

TASKS: Final[tuple[Task, ...]] = ("recall", "copy")
KEYS: Final = string.ascii_letters
VALUES: Final = string.digits
SYMBOLS: Final = string.ascii_letters + string.digits

#: Every recall question asks for this many keys: the answer of each stands a fixed distance after
#: its question, which is what keeps the task learnable in minutes.
ANSWER_LENGTH: Final = 6

#: Held-out prompts are 64 to 165 tokens long.
RECALL_PAIRS: Final = (20, len(KEYS))
COPY_LENGTH: Final = (34, len(SYMBOLS))

#: Separates the held-out items from everything the training script draws.
HELD_OUT_SEED: Final = "held-out-1"


@dataclass(frozen=True)
class Item:
    """One prompt and the only right continuation (without the end token)."""

    task: Task
    prompt: str
    answer: str


@dataclass(frozen=True)
class Sequence:
    """A training text and its scored characters.

    text: whole sequence; `END` stands for the end token.
    scored: for each character, whether the model is trained to predict it.
    """

    text: str
    scored: tuple[bool, ...]


#: Placeholder for the end token in a training text (never part of a prompt or an answer).
END: Final = "\x03"


def _pairs(rng: random.Random, count: int) -> dict[str, str]:
    return {key: rng.choice(VALUES) for key in rng.sample(KEYS, count)}


def _listing(pairs: dict[str, str]) -> str:
    return "{" + ",".join(key + value for key, value in pairs.items()) + "}"


def recall_item(rng: random.Random, pair_count: int) -> Item:
    """A recall item with `pair_count` pairs in its list (at least six, at most 52)."""
    return recall_conversation(rng, pair_count, 1)[0]


def recall_conversation(rng: random.Random, pair_count: int, questions: int) -> list[Item]:
    """Several questions about one list: their prompts share the list as a common prefix."""
    pairs = _pairs(rng, pair_count)
    items = []
    for _ in range(questions):
        asked = rng.sample(list(pairs), ANSWER_LENGTH)
        prompt = f"{_listing(pairs)}?{''.join(asked)}="
        items.append(Item("recall", prompt, "".join(pairs[key] for key in asked)))
    return items


def copy_item(rng: random.Random, length: int) -> Item:
    """A copy item whose string has `length` different characters (at most 62)."""
    text = "".join(rng.sample(SYMBOLS, length))
    return Item("copy", f"[{text}]{text[:-ANSWER_LENGTH]}", text[-ANSWER_LENGTH:])


def held_out(task: Task, count: int) -> list[Item]:
    """The first `count` held-out items of a task; always the same ones, each of its own seed."""
    items = []
    for index in range(count):
        rng = random.Random(f"{HELD_OUT_SEED}/{task}/{index}")
        if task == "recall":
            items.append(recall_item(rng, rng.randint(*RECALL_PAIRS)))
        else:
            items.append(copy_item(rng, rng.randint(*COPY_LENGTH)))
    return items


def training_sequence(rng: random.Random, task: Task, size: int) -> Sequence:
    """A training text with many scored characters: the same tasks, asked densely.

    recall: `size` pairs, then as many six-key questions as there are keys, no key asked twice (so
    that no answer can be read off an earlier one). copy: a string of `size` characters, repeated.
    """
    if task == "copy":
        text = "".join(rng.sample(SYMBOLS, size))
        # The first repeated character is not scored: a prompt always contains it.
        return Sequence(
            f"[{text}]{text}{END}", (False,) * (size + 3) + (True,) * (size - 1) + (True,)
        )
    pairs = _pairs(rng, size)
    listing = _listing(pairs)
    pieces, scored = [listing], [False] * len(listing)
    asked = rng.sample(list(pairs), size)
    for start in range(0, size - ANSWER_LENGTH + 1, ANSWER_LENGTH):
        group = asked[start : start + ANSWER_LENGTH]
        pieces.append(f"?{''.join(group)}={''.join(pairs[key] for key in group)}{END}")
        scored += [False] * (ANSWER_LENGTH + 2) + [True] * (ANSWER_LENGTH + 1)
    return Sequence("".join(pieces), tuple(scored))
