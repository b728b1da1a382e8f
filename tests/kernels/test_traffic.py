"""What the kernels read, multiply and keep in LDS, counted exactly; and the page that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.registry import GFX
from vllm_amdopt.codegen import traffic
from vllm_amdopt.codegen.document import document

WORKLOADS = list(traffic.workloads())
PAGE = Path(__file__).resolve().parents[2] / "docs" / "codegen.md"


@pytest.fixture(scope="module")
def measured() -> list[traffic.Traffic]:
    return [traffic.measure(workload, gfx) for workload in WORKLOADS for gfx in GFX]


def test_each_byte_of_a_stream_is_read_as_often_as_it_must_be(measured) -> None:
    for counted in measured:
        workload = counted.workload
        assert 1.0 <= counted.fetched_ratio <= workload.most, workload.name
        assert counted.fetched_ratio <= counted.asked_ratio
        assert workload.most == traffic.MOST or workload.why
        assert counted.flops >= workload.needed_flops
        assert counted.loaded_bytes >= counted.asked_bytes
        assert counted.stored_bytes > 0


def without_loop_lengths(page: str) -> list[str]:
    """The page's lines without the column `loop` of its tables."""
    lines, column = [], None
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 3:
            column = None
        elif "loop" in cells:
            column = cells.index("loop")
        elif column is not None:
            cells[column] = ""
        lines.append("|".join(cells))
    return lines


def test_the_page_is_what_the_compiler_and_the_emulator_say(measured) -> None:
    """Exact: every register, load and wait of every form, every byte and every FLOP.

    Not the number of instructions in a loop: the compiler puts one more or less into a few of them,
    depending on what the process compiled before.
    """
    page = PAGE.read_text(encoding="utf-8")
    assert without_loop_lengths(page) == without_loop_lengths(document(measured))
