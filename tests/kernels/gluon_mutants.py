"""Mutants of the kernels in Gluon; what a mutant is, is in `mutants`."""

from __future__ import annotations

from tests.kernels.mutants import BORDERS, Mutant

CDNA, TILES = "cdna/paged_attention_decode", "cdna/tiles"
MERGE, STEPS = "cdna/last_block_merge", "cdna/attention_steps"
LATENT = "cdna/mla_decode"

GLUON = (
    Mutant(
        "tokens_in_the_order_of_rows",
        CDNA,
        "row // 4 % 4 * 8 + row // 16 * 4 + row % 4",
        "row",
        BORDERS,
    ),
    Mutant(
        "scores_past_the_end_in_gluon",
        CDNA,
        "(position >= low) & (position < end)",
        "position >= low",
        BORDERS,
        included=STEPS,
    ),
    Mutant(
        "scores_before_the_window",
        CDNA,
        'scores = gl.where(position >= low, scores, float("-inf"))',
        "scores = scores",
        "head_80_window_cap",
        included=STEPS,
    ),
    Mutant("sink_in_every_part", CDNA, "row * 0 + split == 0", "row * 0 == 0", "sinks_in_parts"),
    Mutant(
        "slopes_of_the_first_heads",
        CDNA,
        "alibi_slopes_ptr + kv_head * GROUP",
        "alibi_slopes_ptr + kv_head * 0",
        "alibi_cap_in_parts",
    ),
    Mutant(
        "draft_that_sees_the_next",
        CDNA,
        "visible = position <= limit",
        "visible = position <= limit + 1",
        "4_tokens_around_borders",
        included=STEPS,
    ),
    Mutant(
        "window_of_the_first_draft",
        CDNA,
        "visible & (position > limit - window)",
        "visible & (position > low)",
        "2_tokens_everything_in_parts",
        included=STEPS,
    ),
    Mutant(
        "heads_past_the_group",
        CDNA,
        "mask=(row < GROUP * QUERY_LEN) & (element",
        "mask=(row < 16) & (element",
        "2_tokens_everything_in_parts",
        included=MERGE,
    ),
    Mutant(
        "heads_of_a_part",
        CDNA,
        "((first + part) * ROWS + row) * HEAD_SIZE",
        "((first + part) * ROWS) * HEAD_SIZE",
        "split_borders",
        included=MERGE,
    ),
    Mutant(
        "one_wave_early",
        CDNA,
        "parts * W - 1",
        "parts * W - 2",
        "split_borders",
        included=MERGE,
    ),
    Mutant(
        "upper_half_of_a_word_of_fp8",
        CDNA,
        "src0_sel:WORD_1",
        "src0_sel:WORD_0",
        "fp8",
        included=TILES,
        through=STEPS,
    ),
    Mutant("scale_of_values", CDNA, "v_scale / gl.where", "1.0 / gl.where", "fp8"),
    Mutant(
        "rows_without_a_token",
        CDNA,
        "gl.where((token >= low) & (token < end), pointers, zeros_ptr)",
        "pointers",
        BORDERS,
        included=TILES,
    ),
    Mutant(
        "entries_past_the_sequence",
        CDNA,
        "gl.minimum(gl.maximum(first_token, low), end - 1)",
        "gl.maximum(first_token, low)",
        BORDERS,
        included=TILES,
    ),
    Mutant(
        "latents_turned_by_another_matrix",
        LATENT,
        "diagonal = axis_index(16, 1, 3, right) ==",
        "diagonal = 15 - axis_index(16, 1, 3, right) ==",
        "block_1_tile_borders",
    ),
    Mutant(
        "tokens_of_two_waves",
        LATENT,
        "token = start + axis_index(T, 0, 2, by_row) * 16",
        "token = start + axis_index(T, 0, 2, by_row) * 8",
        "block_1_tile_borders",
    ),
    Mutant(
        "scores_past_the_end_of_latents_in_gluon",
        LATENT,
        'gl.where(position < end, scores * score_scale, float("-inf"))',
        "scores * score_scale",
        "single_row_block_128",
    ),
    Mutant(
        "heads_of_the_second_program",
        LATENT,
        "head = gl.minimum(row_tile * ROWS +",
        "head = gl.minimum(",
        "70_heads_take_three_tiles",
    ),
    Mutant(
        "heads_past_the_last",
        LATENT,
        "gl.store(partial_ptr + part * LATENT_SIZE + element, result, mask=lane < heads)",
        "gl.store(partial_ptr + part * LATENT_SIZE + element, result)",
        "block_16_20_heads",
    ),
)
