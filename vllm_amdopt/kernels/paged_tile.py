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
def tile_blocks(table_row_ptr, tile_start, end, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Block numbers (int64) of the tile's tokens: a scalar where block >= tile, otherwise [TILE].

    Loaded one tile ahead by the callers, so that the table's latency does not add to the cache's.
    """
    if BLOCK_SIZE >= TILE:
        return tl.load(table_row_ptr + tile_start // BLOCK_SIZE, mask=tile_start < end, other=0).to(
            tl.int64
        )
    else:
        position = tile_start + tl.arange(0, TILE)
        return tl.load(table_row_ptr + position // BLOCK_SIZE, mask=position < end, other=0).to(
            tl.int64
        )


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
