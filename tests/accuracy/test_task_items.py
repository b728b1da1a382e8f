"""Generated questions have one right answer that stands in the prompt or follows from it; files of
questions are read, and refused in words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.models import tasks as model_tasks
from vllm_amdopt.accuracy.task_items import (
    GENERATED,
    TaskFileError,
    generate,
    read_gsm8k,
    read_prompts,
    read_task_file,
)


def last_paragraph(prompt: str) -> dict[str, str]:
    lines = prompt.split("\n\n")[-1].splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("name", GENERATED)
def test_the_same_seed_gives_the_same_items_and_another_one_others(name: str) -> None:
    first = generate(name, 8, characters=500)
    assert first == generate(name, 8, characters=500)
    assert first.items[:3] == generate(name, 3, characters=500).items
    assert set(first.items).isdisjoint(generate(name, 8, seed=1, characters=500).items)
    assert len({item.prompt for item in first.items}) == 8
    for item in first.items:
        assert item.prompt.isascii() and item.answer == item.answer.strip() != ""
        assert "\n" not in item.answer
        # A token is at least a character of these texts, digits at worst one each.
        assert first.longest >= len(re.findall(r"\d|[a-z]+", item.answer))


def test_recall_is_answered_by_its_list() -> None:
    for item in generate("recall", 20).items:
        asked = last_paragraph(item.prompt)
        codes = dict(pair.split() for pair in asked["Codes"].rstrip(".").split(", "))
        found = " ".join(codes[word] for word in asked["Find"].rstrip(".").split())
        assert found == item.answer


def test_arithmetic_is_answered_by_adding() -> None:
    for item in generate("arithmetic", 20).items:
        asked = last_paragraph(item.prompt)
        total, totals = int(asked["Start"]), []
        for change in asked["Changes"].split():
            total += int(change)
            totals.append(str(total))
        assert " ".join(totals) == item.answer
        assert min(map(int, totals)) > 0


def test_copy_is_answered_by_its_words() -> None:
    for item in generate("copy", 20).items:
        assert last_paragraph(item.prompt)["Words"] == item.answer


def test_a_needle_is_said_once_in_a_text_of_the_length() -> None:
    for item in generate("needle", 20, characters=3000).items:
        facts = re.findall(r"The secret number of the (\w+) is (\d+)\.", item.prompt)
        place = re.search(r"the secret number of the (\w+) is$", item.prompt)
        assert place is not None and facts == [(place[1], item.answer)]
        assert 3000 <= len(item.prompt) <= 3400


def test_the_examples_are_worked_ones() -> None:
    (item,) = generate("arithmetic", 1).items
    assert item.prompt.count("Totals:") == 3
    assert re.search(r"Totals: \d+( \d+){5}\n\n", item.prompt)
    assert item.prompt.endswith("Totals:")


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_the_small_models_questions_is_read(tmp_path: Path) -> None:
    items = model_tasks.held_out("recall", 3)
    rows = [{"prompt": item.prompt, "answer": item.answer, "note": "more"} for item in items]
    path = write(tmp_path / "recall.jsonl", *rows)
    task = read_task_file("recall", path)
    assert [(item.prompt, item.answer) for item in task.items] == [
        (item.prompt, item.answer) for item in items
    ]
    assert task.longest > model_tasks.ANSWER_LENGTH
    assert len(read_task_file("recall", path, limit=2).items) == 2
    assert read_prompts(path) == tuple(item.prompt for item in items)


def test_gsm8k_has_its_examples_in_the_prompt(tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {n} times 1000?", "answer": f"It is that.\n#### {n},000"}
        for n in range(1, 9)
    ]
    task = read_gsm8k(write(tmp_path / "gsm8k.jsonl", *rows))
    assert [item.answer for item in task.items] == ["6000", "7000", "8000"]
    assert task.items[0].prompt.count("#### ") == 5
    assert task.items[0].prompt.endswith("Question: What is 6 times 1000?\nAnswer:")
    assert task.number
    assert len(read_gsm8k(tmp_path / "gsm8k.jsonl", limit=2).items) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("", "holds no question", id="empty"),
        pytest.param('{"prompt": "a"}\n', "line 1: expected a JSON object", id="no answer"),
        pytest.param('{"prompt": "a", "answer": "b"}\n[1', "line 2", id="cut off"),
        pytest.param('{"prompt": "a", "answer": 3}\n', "line 1", id="no text"),
        pytest.param('{"prompt": "a", "answer": "b\\nc"}\n', "one line of text", id="lines"),
        pytest.param(b"\xff\xfe", "not a text file", id="binary"),
    ],
)
def test_unusable_files_are_refused_in_words(
    tmp_path: Path, content: str | bytes, words: str
) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TaskFileError, match=words):
        read_task_file("mine", path)


def test_a_missing_file_and_a_short_or_odd_gsm8k_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match="cannot be read: No such file"):
        read_task_file("mine", tmp_path / "none.jsonl")
    row = {"question": "q", "answer": "#### 1"}
    with pytest.raises(TaskFileError, match="the first 5 become examples"):
        read_gsm8k(write(tmp_path / "short.jsonl", *[row] * 5))
    with pytest.raises(TaskFileError, match="line 6: the answer does not end in `#### NUMBER`"):
        read_gsm8k(write(tmp_path / "odd.jsonl", *[row] * 5, {"question": "q", "answer": "1"}))
