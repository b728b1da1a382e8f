"""Cells as they are written, and prompts of exact lengths."""

from __future__ import annotations

import pytest

from vllm_amdopt.accuracy.cells import Cell, Group, parse_cells, positions, prompts_of_length
from vllm_amdopt.accuracy.replay_program import doubled, doubled_requests, originals


def test_cells_are_read() -> None:
    cells = parse_cells("1x128, 8x128+2x2048")
    assert cells == (Cell((Group(1, 128),)), Cell((Group(8, 128), Group(2, 2048))))
    assert [cell.name for cell in cells] == ["1x128", "8x128+2x2048"]
    assert cells[1].requests == 10
    assert cells[1].contexts == (128,) * 8 + (2048,) * 2
    assert positions(cells, 4) == 44


def test_a_cell_that_is_named_twice_is_asked_once() -> None:
    assert len(parse_cells("2x8,2x8")) == 1


@pytest.mark.parametrize("text", ["", "8", "8x", "x8", "0x8", "8x0", "8x128+", "8*128", "1x8,,1x9"])
def test_other_texts_are_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="write REQUESTSxCONTEXT"):
        parse_cells(text)


def test_prompts_have_the_length_and_end_where_a_text_ends() -> None:
    sources = [[1, 2, 3], [4, 5], [], [6, 7, 8, 9]]
    found = list(prompts_of_length(sources, [2, 7, 3, 20], first=1))
    assert [len(prompt) for prompt in found] == [2, 7, 3, 20]
    assert found[0] == [4, 5]
    assert found[1] == [3, 4, 5, 6, 7, 8, 9]
    assert found[2] == [1, 2, 3]
    assert found[3][-2:] == [4, 5]


def test_prompts_need_a_token() -> None:
    with pytest.raises(ValueError, match="hold no token"):
        list(prompts_of_length([[], []], [4]))


def test_a_doubled_cell_holds_every_request_twice_and_gives_the_first_ones_back() -> None:
    (cell,) = parse_cells("2x8+3x16")
    asked = ["a", "b", "c", "d", "e"]
    twice = doubled_requests(cell, asked)
    assert twice == ["a", "b", "b", "a", "c", "d", "e", "e", "d", "c"]
    assert doubled(cell).name == "4x8+6x16"
    assert originals(cell, twice) == asked
