"""Where the tokens of one tile lie in a paged cache: addressing that the attention kernels share.

Block sizes and tile sizes are powers of two and tiles start at multiples of their size, so a tile
lies either inside one block (block >= tile) or in whole blocks. The first form needs one table
entry and gives a scalar base plus small offsets; the second gathers every token by itself.
Offsets are 64 bit: a cache exceeds 2^31 elements.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def token_offsets(
    blocks, tile_start, stride_block, stride_token, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr
):
    """(scalar base, [TILE] offsets) in elements; their sum is where each token's row starts."""
    token = tl.arange(0, TILE)
    if BLOCK_SIZE >= TILE:
        base = blocks * stride_block + (tile_start % BLOCK_SIZE) * stride_token
        return base, token * stride_token
    else:
        row = (tile_start + token) % BLOCK_SIZE
        return 0, blocks * stride_block + row * stride_token


MOST_SCALAR_PAGES = tl.constexpr(4)


@triton.jit
def pages_of_tile(
    table_row_ptr, tile_start, first, last, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr
):
    """Block numbers (int64) of the tile's tokens without a mask: a scalar, or [TILE].

    Tokens before the one at `first` get its block, tokens after the one at `last` its, so that each
    entry that is read is one in use. Up to four pages are loaded as scalars, one load a page.
    """
    if BLOCK_SIZE >= TILE:
        position = tl.minimum(tl.maximum(tile_start, first), last)
        return tl.load(table_row_ptr + position // BLOCK_SIZE).to(tl.int64)
    elif TILE // BLOCK_SIZE <= MOST_SCALAR_PAGES:
        blocks = tl.zeros([TILE], tl.int64)
        for page in tl.static_range(TILE // BLOCK_SIZE):
            position = tl.minimum(tl.maximum(tile_start + page * BLOCK_SIZE, first), last)
            block = tl.load(table_row_ptr + position // BLOCK_SIZE).to(tl.int64)
            blocks = tl.where(tl.arange(0, TILE) // BLOCK_SIZE == page, block, blocks)
        return blocks
    else:
        position = tl.minimum(tl.maximum(tile_start + tl.arange(0, TILE), first), last)
        return tl.load(table_row_ptr + position // BLOCK_SIZE).to(tl.int64)


@triton.jit
def load_tile(
    cache_ptr,
    pages,
    tile_start,
    last,
    stride_block,
    STRIDE_ROW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Elements [FIRST, FIRST + WIDTH) of the tile's rows, [TILE, WIDTH]; `pages` as above.

    A masked load with a 64-bit address is a branch that waits by itself, so there is no mask:
    tokens after `last` get its row, which holds finite numbers where unused slots may hold any.
    Tokens before `first` get whatever row of its page: a row that held a token before.
    """
    token = tl.minimum(tl.arange(0, TILE), last - tile_start)
    element = FIRST + tl.arange(0, WIDTH)
    if BLOCK_SIZE >= TILE:
        row = (tile_start & (BLOCK_SIZE - 1)) + token
        page_ptr = cache_ptr + pages * stride_block
        return tl.load(page_ptr + (row[:, None] * STRIDE_ROW + element[None, :]))
    else:
        row = token & (BLOCK_SIZE - 1)
        page_ptrs = cache_ptr + pages * stride_block
        return tl.load(page_ptrs[:, None] + (row[:, None] * STRIDE_ROW + element[None, :]))
