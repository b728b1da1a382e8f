"""The two generated tasks of the small test models: prompts and their one right answer.

Plain text and the standard library only, so a server test, the demo and the training script can all
use it. It is not a benchmark of language ability: it tells a right attention kernel from a wrong
one, because every answer character has to be looked up in the context.

`recall`: key-value pairs between braces, then one key. The answer is its value, then the value of
that (every letter that is a value is also a key), and so on until a digit: six look-ups in a row,
each over the whole list, where one wrong step spoils all that follow::

    {qB,b2,Zm, ... ,BZ,mx,xc,c1}?q      ->  BZmxc1

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
ENDS: Final = string.digits
SYMBOLS: Final = string.ascii_letters + string.digits

#: Characters of every answer.
ANSWER_LENGTH: Final = 6

#: Held-out prompts are 64 to 159 tokens long.
RECALL_PAIRS: Final = (21, len(KEYS))
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
    """A training text and what the model is to say after each of its characters.

    text: whole sequence; `END` stands for the end token.
    targets: as long as `text`; the character wanted after each one, or "" where nothing is scored.
    """

    text: str
    targets: tuple[str, ...]


#: Placeholder for the end token in a training text (never part of a prompt or an answer).
END: Final = "\x03"


def _chains(rng: random.Random, pair_count: int) -> list[str]:
    """Disjoint chains of keys that each end in a digit, with `pair_count` keys in all.

    All have six keys but for one shorter chain with what is left over.
    """
    keys = rng.sample(KEYS, pair_count)
    return [
        "".join(keys[start : start + ANSWER_LENGTH]) + rng.choice(ENDS)
        for start in range(0, pair_count, ANSWER_LENGTH)
    ]


def _listing(rng: random.Random, chains: list[str]) -> str:
    pairs = [chain[i : i + 2] for chain in chains for i in range(len(chain) - 1)]
    return "{" + ",".join(rng.sample(pairs, len(pairs))) + "}"


def recall_conversation(rng: random.Random, pair_count: int, questions: int) -> list[Item]:
    """Several questions about one list: their prompts share the list as a common prefix.

    pair_count: 6 to 52. questions: at most pair_count // 6.
    """
    chains = _chains(rng, pair_count)
    listing = _listing(rng, chains)
    asked = [chain for chain in chains if len(chain) == ANSWER_LENGTH + 1]
    if questions > len(asked):
        raise ValueError(f"{pair_count} pairs allow {len(asked)} questions, not {questions}.")
    return [Item("recall", f"{listing}?{chain[0]}", chain[1:]) for chain in asked[:questions]]


def recall_item(rng: random.Random, pair_count: int) -> Item:
    """A recall item with `pair_count` pairs in its list (6 to 52)."""
    return recall_conversation(rng, pair_count, 1)[0]


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

    recall: `size` pairs, then the question and answer of every chain. copy: a string of `size`
    characters, repeated; its first repeated character is not scored, because a prompt always
    contains it.
    """
    if task == "copy":
        text = "".join(rng.sample(SYMBOLS, size))
        return Sequence(f"[{text}]{text}{END}", ("",) * (size + 2) + (*text[1:], END) + ("",))
    chains = _chains(rng, size)
    pieces = [_listing(rng, chains)]
    targets = [""] * len(pieces[0])
    for chain in rng.sample(chains, len(chains)):
        pieces.append(f"?{chain}{END}")
        targets += ["", *chain[1:], END, ""]
    return Sequence("".join(pieces), tuple(targets))
