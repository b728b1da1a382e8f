"""Generated questions that only decoding answers, and files of questions; no model is asked.

Every answer is text that the model has to write token by token, so that the decode path, the paged
cache and the batch are part of what is checked. Multiple-choice tasks score prefill alone.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WORDS = (
    "amber", "anchor", "apple", "arrow", "badge", "basil", "beacon", "birch", "blade", "bottle",
    "branch", "brick", "bridge", "candle", "canyon", "carbon", "castle", "cedar", "chain", "cherry",
    "circle", "cliff", "clover", "cobalt", "copper", "coral", "cotton", "crane", "crystal", "dawn",
    "desert", "dragon", "eagle", "ember", "engine", "falcon", "feather", "fern", "fiddle", "flint",
    "forest", "garden", "garnet", "ginger", "glacier", "granite", "harbor", "hazel", "helmet",
    "hollow", "honey", "island", "ivory", "jacket", "jungle", "kettle", "ladder", "lantern",
    "lemon", "linen", "magnet", "maple", "marble", "meadow", "mirror", "monsoon", "mountain",
    "nectar", "needle", "nickel", "ocean", "olive", "orbit", "orchid", "otter", "paper", "pebble",
    "pepper", "pillow", "planet", "prairie", "quartz", "quiver", "rabbit", "raven", "ribbon",
    "river", "saddle", "saffron", "silver", "spiral", "sparrow", "summit", "thunder", "timber",
    "tunnel", "velvet", "violet", "walnut", "whisper", "willow", "window", "winter", "zephyr",
)  # fmt: skip

_NEWLINE = re.compile(r"[\r\n]")


@dataclass(frozen=True)
class Item:
    """One question: the whole prompt, and the answer that counts as right."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Task:
    """Items with what lm-eval needs to ask and to score them.

    stop: texts that end an answer. longest: tokens that an answer may take. number: whether the
    last number in what the model wrote is the answer, instead of all of it.
    """

    name: str
    items: tuple[Item, ...]
    stop: tuple[str, ...]
    longest: int
    number: bool = False


class TaskFileError(ValueError):
    """A file of questions cannot be used; the message is a sentence for the user."""


# --- generated ----------------------------------------------------------------------------------


def recall(rng: random.Random) -> Item:
    """Codes of words; four of them are asked for in another order."""

    def listing(count: int) -> str:
        words = rng.sample(WORDS, count)
        codes = {word: str(rng.randint(1000, 9999)) for word in words}
        asked = rng.sample(words, 4)
        pairs = ", ".join(f"{word} {code}" for word, code in codes.items())
        found = " ".join(codes[word] for word in asked)
        return f"Codes: {pairs}.\nFind: {' '.join(asked)}.\nFound:\0 {found}"

    return _with_examples(listing, (6, 8, 24))


def arithmetic(rng: random.Random) -> Item:
    """A running total, written down after every step."""

    def sums(steps: int) -> str:
        total = rng.randint(10, 60)
        start, moves, totals = total, [], []
        for _ in range(steps):
            change = rng.choice([c for c in range(-9, 10) if c and total + c > 0])
            total += change
            moves.append(f"{change:+d}")
            totals.append(str(total))
        return f"Start: {start}\nChanges: {' '.join(moves)}\nTotals:\0 {' '.join(totals)}"

    return _with_examples(sums, (6, 6, 10))


def copy(rng: random.Random) -> Item:
    """Words to be written again."""

    def pair(count: int) -> str:
        words = " ".join(rng.choice(WORDS) for _ in range(count))
        return f"Words: {words}\nAgain:\0 {words}"

    return _with_examples(pair, (6, 9, 20))


def needle(rng: random.Random, characters: int) -> Item:
    """One sentence with a number, hidden in text about something else."""
    place, number = rng.choice(WORDS), str(rng.randint(10000, 99999))
    sentences = []
    length = 0
    while length < characters:
        first, second, third = rng.sample([word for word in WORDS if word != place], 3)
        sentences.append(f"The {first} stands between the {second} and the {third}.")
        length += len(sentences[-1]) + 1
    fact = f"The secret number of the {place} is {number}."
    sentences.insert(rng.randint(0, len(sentences)), fact)
    text = " ".join(sentences)
    return Item(
        f"{text}\nQuestion: what is the secret number of the {place}?\n"
        f"Answer: the secret number of the {place} is",
        number,
    )


def _with_examples(make: Callable[[int], str], sizes: Sequence[int]) -> Item:
    """Two worked examples, then the question; "\\0" stands between a question and its answer."""
    *examples, last = (make(size) for size in sizes)
    shown = "\n\n".join(example.replace("\0", "") for example in examples)
    question, answer = last.split("\0")
    return Item(f"{shown}\n\n{question}", answer.strip())


GENERATED: Mapping[str, int] = {"recall": 48, "arithmetic": 96, "copy": 128, "needle": 16}
"""Generated tasks, each with the tokens that an answer may take."""


def generate(name: str, count: int, seed: int = 0, characters: int = 6000) -> Task:
    """`count` items of a generated task, the same ones for the same seed."""
    makers: Mapping[str, Callable[[random.Random], Item]] = {
        "recall": recall,
        "arithmetic": arithmetic,
        "copy": copy,
        "needle": lambda rng: needle(rng, characters),
    }
    items = tuple(makers[name](random.Random(f"{name}/{seed}/{n}")) for n in range(count))
    return Task(name, items, ("\n",), GENERATED[name], number=name == "needle")


# --- from files ---------------------------------------------------------------------------------


def read_task_file(name: str, path: Path, limit: int | None = None) -> Task:
    """A task from JSON lines with `prompt` and `answer`: the answer has to be met exactly."""
    rows = _rows(path, ("prompt", "answer"), limit)
    items = tuple(Item(row["prompt"], row["answer"].strip()) for row in rows)
    broken = next((n for n, item in enumerate(items, 1) if _NEWLINE.search(item.answer)), None)
    if broken is not None:
        raise TaskFileError(f"{path}, line {broken}: an answer is one line of text")
    # A token is at least one character for every tokenizer that reads text.
    longest = max(len(item.answer) for item in items) + 8
    return Task(name, items, ("\n",), longest)


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of JSON lines, whatever else stands in them."""
    return tuple(row["prompt"] for row in _rows(path, ("prompt",), None))


EXAMPLES = 5
"""As many solved questions stand before each of gsm8k's, as in lm-eval's own task."""


def read_gsm8k(path: Path, limit: int | None = None) -> Task:
    """A task from JSON lines as gsm8k has them: `question`, and `answer` that ends in `#### 42`.

    The first five are the examples in front of all others.
    """
    rows = _rows(path, ("question", "answer"), None if limit is None else limit + EXAMPLES)
    if len(rows) <= EXAMPLES:
        raise TaskFileError(
            f"{path} has {len(rows)} questions: the first {EXAMPLES} become examples, so more are "
            "needed"
        )
    examples = "".join(
        f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in rows[:EXAMPLES]
    )
    items = []
    for number, row in enumerate(rows, 1):
        found = re.search(r"####\s*(-?[\d.,]+)\s*$", row["answer"])
        if found is None:
            raise TaskFileError(f"{path}, line {number}: the answer does not end in `#### NUMBER`")
        if number > EXAMPLES:
            prompt = f"{examples}Question: {row['question']}\nAnswer:"
            items.append(Item(prompt, found[1].replace(",", "").rstrip(".")))
    return Task("gsm8k", tuple(items), ("Question:", "\n\n"), 512, number=True)


def _rows(path: Path, fields: Sequence[str], limit: int | None) -> list[dict[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TaskFileError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TaskFileError(f"{path} is not a text file") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not all(
            isinstance(row.get(name), str) and row[name] for name in fields
        ):
            raise TaskFileError(
                f"{path}, line {number}: expected a JSON object with the texts "
                f"{' and '.join(fields)}"
            )
        rows.append(row)
        if limit is not None and len(rows) == limit:
            break
    if not rows:
        raise TaskFileError(f"{path} holds no question")
    return rows
