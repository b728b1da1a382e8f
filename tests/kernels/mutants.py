"""Kernels with one thing broken, made from the real sources; no tests here.

Each mutant names a place in `vllm_amdopt/kernels/<stem>.py`, what stands there instead, and the
test of the suite that has to fail because of it.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from vllm_amdopt import kernels

SOURCES = Path(kernels.__path__[0])


@dataclass(frozen=True)
class Mutant:
    """`old`, which stands in the kernel's source once, becomes `new`; `case` notices."""

    name: str
    stem: str
    old: str
    new: str
    case: str
    included: str | None = None
    """The stem of the file that `old` stands in, where the kernel imports it from there."""
    through: str | None = None
    """The stem of a file in between, which imports it for the kernel."""


DECODE, PREFILL = "paged_attention_decode", "paged_attention_prefill"
BORDERS, SPLITS, WINDOW = "page_and_tile_borders", "split_borders", "block_1_window_cap"
SEVERAL = "4_tokens_around_borders"

WRONG_INDEX = (
    Mutant(
        "query_head",
        DECODE,
        "head = kv_head * GROUP + row % GROUP",
        "head = kv_head + row % GROUP",
        BORDERS,
    ),
    Mutant(
        "key_head",
        DECODE,
        "k_cache_ptr + kv_head.to(tl.int64) * k_stride_head",
        "k_cache_ptr + kv_head.to(tl.int64) * K_STRIDE_ROW",
        BORDERS,
    ),
    Mutant(
        "pages_of_one_tile_early",
        DECODE,
        "table_row_ptr, next_start + TILE, lowest",
        "table_row_ptr, next_start, lowest",
        BORDERS,
    ),
    Mutant(
        "table_row_of_another_sequence",
        DECODE,
        "sequence * table_stride",
        "sequence * (table_stride - 1)",
        BORDERS,
    ),
    Mutant(
        "window_one_short",
        DECODE,
        "position[None, :] > limit[:, None] - window",
        "position[None, :] > limit[:, None] - window + 1",
        WINDOW,
        included="online_softmax",
    ),
    Mutant(
        "causal_among_the_new_tokens",
        DECODE,
        "limit = seq_len - QUERY_LEN + token ",
        "limit = seq_len - 1 + 0 * token ",
        SEVERAL,
    ),
    Mutant(
        "one_place_for_two_parts",
        DECODE,
        "slot = program * splits + split\n",
        "slot = program * splits + split // 2\n",
        SPLITS,
    ),
    Mutant(
        "row_in_block",
        DECODE,
        "row = token & (BLOCK_SIZE - 1)",
        "row = (token + 1) & (BLOCK_SIZE - 1)",
        BORDERS,
        included="paged_tile",
    ),
    Mutant(
        "scale_of_the_values",
        DECODE,
        "v_scale).to(out_type), mask=whole",
        "1.0).to(out_type), mask=whole",
        "fp8",
    ),
    Mutant(
        "causal_by_one",
        PREFILL,
        "visible = key_position[None, :] <= position[:, None]",
        "visible = key_position[None, :] < position[:, None]",
        "one_short_chunk",
    ),
    Mutant(
        "rotary_part_one_early",
        "mla_decode",
        "rope_column = LATENT_SIZE + group",
        "rope_column = LATENT_SIZE - 1 + group",
        "single_row_block_128",
    ),
    Mutant(
        "row_of_the_second_tile",
        "mla_decode",
        "row = row_tile * ROWS + tl.arange(0, ROWS)",
        "row = row_tile * (ROWS + 1) + tl.arange(0, ROWS)",
        "70_heads_take_three_tiles",
    ),
    Mutant(
        "position_of_the_tail",
        "mla_decode",
        "tile_start = next_start\n",
        "tile_start = tail\n",
        "block_64_3_heads_without_lse",
    ),
    Mutant(
        "scale_of_the_latents_forgotten",
        "mla_decode",
        "factor = value_scale / ",
        "factor = 1.0 / ",
        "block_16_24_heads_fp8",
    ),
    Mutant(
        "part_without_tokens_counted",
        "mla_decode",
        "present = part * tiles_per_split < tiles",
        "present = part < splits",
        "block_1_split_borders",
    ),
    Mutant(
        "weight_row_by_the_wrong_stride",
        "gemm_small_batch",
        "weight_offsets = column[:, None] * weight_stride_row",
        "weight_offsets = column[:, None] * k",
        "17_rows_views",
    ),
    Mutant(
        "second_tile_of_rows",
        "gemm_small_batch",
        "out_ptr + first_row.to(tl.int64) * n",
        "out_ptr + (first_row + 1).to(tl.int64) * n",
        "150_rows_odd_sizes",
    ),
    Mutant(
        "slot_of_the_sender",
        "all_reduce_one_shot",
        "+ slot + rank",
        "+ slot",
        "2_ranks_growing_and_shrinking",
    ),
    Mutant(
        "own_half_twice",
        "all_reduce_one_shot",
        "region = regions[p].to",
        "region = regions[0].to",
        "2_ranks_growing_and_shrinking",
    ),
)

MISSING_MASK = (
    Mutant(
        "rows_past_the_end",
        DECODE,
        "token = tl.minimum(tl.arange(0, TILE), last - tile_start)",
        "token = tl.arange(0, TILE)",
        BORDERS,
        included="paged_tile",
    ),
    Mutant(
        "pages_past_the_end",
        DECODE,
        "position = tl.minimum(tl.maximum(tile_start + page * BLOCK_SIZE, first), last)",
        "position = tile_start + page * BLOCK_SIZE",
        BORDERS,
        included="paged_tile",
    ),
    Mutant(
        "scores_past_the_end",
        DECODE,
        "visible = position[None, :] <= limit[:, None]",
        "visible = position[None, :] <= limit[:, None] + 64",
        BORDERS,
        included="online_softmax",
    ),
    Mutant(
        "padded_query_rows",
        DECODE,
        "query = tl.load(query_ptrs + low[None, :], mask=present[:, None], other=0.0)",
        "query = tl.load(query_ptrs + low[None, :])",
        BORDERS,
    ),
    Mutant(
        "stored_rows",
        DECODE,
        "stored = present[:, None]",
        "stored = (row >= 0)[:, None]",
        BORDERS,
    ),
    Mutant(
        "parts_that_nobody_left",
        DECODE,
        "mask=row_mask[None, :] & used[:, None]",
        "mask=row_mask[None, :] & (part >= 0)[:, None]",
        SPLITS,
        included="last_block_merge",
    ),
    Mutant(
        "causal",
        PREFILL,
        'scores = tl.where(visible, scores, float("-inf"))\n',
        "\n",
        "one_short_chunk",
    ),
    Mutant(
        "rows_past_the_chunk",
        PREFILL,
        "present = token < query_len",
        "present = token < query_len + 1",
        "one_short_chunk",
    ),
    Mutant(
        "latents_past_the_end",
        "mla_decode",
        "position = tl.minimum(tile_start + tl.arange(0, TILE), last)\n    row =",
        "position = tile_start + tl.arange(0, TILE)\n    row =",
        "single_row_block_128",
    ),
    Mutant(
        "block_numbers_past_the_end",
        "mla_decode",
        "position = tl.minimum(tile_start + tl.arange(0, TILE), last)\n        return",
        "position = tile_start + tl.arange(0, TILE)\n        return",
        "block_1_fp8",
    ),
    Mutant(
        "scores_past_the_end_of_latents",
        "mla_decode",
        'scores = tl.where(visible, scores, float("-inf"))\n',
        "\n",
        "single_row_block_128",
    ),
    Mutant(
        "tokens_of_a_draft_see_each_other",
        "mla_decode",
        "limit = seq_len - (QUERY_LEN - 1) + token",
        "limit = seq_len + token",
        "3_tokens_each",
    ),
    Mutant(
        "stored_heads_of_the_tile",
        "mla_decode",
        "present = row < rows",
        "present = row >= 0",
        "block_16_20_heads",
    ),
    Mutant(
        "end_of_k",
        "gemm_small_batch",
        "weight_mask = weight_mask & (depth < k - start)[None, :]",
        "weight_mask = weight_mask",
        "17_rows_views",
    ),
    Mutant(
        "columns_of_the_bias",
        "gemm_small_batch",
        "mask=in_columns, other=0.0)",
        "mask=column >= 0, other=0.0)",
        "17_rows_views",
    ),
    Mutant(
        "stored_rows",
        "gemm_small_batch",
        "mask=in_rows[:, None] & in_columns[None, :],",
        "mask=in_columns[None, :],",
        "17_rows_views",
    ),
    Mutant(
        "end_of_the_input",
        "all_reduce_one_shot",
        "values = tl.load(x_ptr + offsets, mask=mask)",
        "values = tl.load(x_ptr + offsets)",
        "2_ranks_growing_and_shrinking",
    ),
    Mutant(
        "end_of_the_output",
        "all_reduce_one_shot",
        "total.to(element_type), mask=mask)",
        "total.to(element_type))",
        "2_ranks_growing_and_shrinking",
    ),
)


def load(mutant: Mutant, directory: Path) -> ModuleType:
    """The kernel module with the mutation in it, imported from a file in `directory`."""
    place = mutant.included or mutant.stem
    source = (SOURCES / f"{place}.py").read_text()
    assert source.count(mutant.old) == 1, f"{mutant.name}: the source has changed, look for it anew"
    source = source.replace(mutant.old, mutant.new)
    module = _import(f"mutant_{mutant.name}_{place.replace('/', '_')}", source, directory)
    for including in (mutant.through, mutant.stem):
        if including is None or including == place:
            continue
        source = (SOURCES / f"{including}.py").read_text()
        import_line = f"from vllm_amdopt.kernels.{place.replace('/', '.')} import"
        assert import_line in source
        source = source.replace(import_line, f"from {module.__name__} import")
        module = _import(f"{module.__name__}_including", source, directory)
        place = including
    return module


def _import(name: str, source: str, directory: Path) -> ModuleType:
    """Triton reads a kernel's source from its file, so it needs one."""
    path = directory / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_BARRIER = re.compile(r"\s+s_barrier\b")
_BETWEEN = re.compile(r"[.\w$]+:|\s+(?:ds|global|buffer|flat|scratch)_|\s+s_c?branch")


def barrier_places(text: str) -> list[list[int]]:
    """The lines of each place in assembly text that holds barriers.

    Barriers with no memory access and no branch between them are one place: any of them will do.
    """
    places: list[list[int]] = []
    neighbours = False
    for number, line in enumerate(text.splitlines()):
        if _BARRIER.match(line):
            if not neighbours:
                places.append([])
            places[-1].append(number)
            neighbours = True
        elif _BETWEEN.match(line):
            neighbours = False
    return places


def without_lines(text: str, numbers: list[int]) -> str:
    """The text without those lines."""
    lines = text.splitlines(keepends=True)
    return "".join(line for number, line in enumerate(lines) if number not in numbers)
