"""How tiles of a paged cache lie in the registers of a wave, and how they are loaded. No kernel.

Every wave of a workgroup has tiles of its own: axis 0 of all tensors is the wave, so nothing passes
between waves, and nothing through LDS. Loads put 16 bytes of a row into a lane where the matrix
instruction wants them. The layouts follow from its operands: the row is in the lane's lower four
bits, of k 8 lie in the lane and 4 x 8 by its upper two bits. `convert_layout(assert_trivial=True)`
is the compiler's proof that no data moves.

The cache is read as words of four bytes: its numbers would otherwise be carried around the loop
unpacked, one to a register. With 8 bits a number, 16 bytes of a key are 16 neighbours, twice what a
lane has of k in one go: the query's elements are taken in the same order, which changes no sum.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def powers(first, end):
    """Powers of two from `first` up to, and without, `end`."""
    found = []
    while first < end:
        found.append(first)
        first *= 2
    return found


@gluon.constexpr_function
def key_layout(waves, words):
    """[waves, 2, 16, words]: 32 keys a wave, as the A operand of keys @ query.

    Row r of instruction i takes token (r // 4) * 8 + i * 4 + r % 4. That order makes the 4 scores
    which each instruction leaves in a lane the 8 consecutive tokens that the next product wants.
    """
    registers = [[0, 0, 0, word] for word in (1, 2, *powers(16, words))] + [[0, 1, 0, 0]]
    lanes = [[0, 0, row, 0] for row in (1, 2, 4, 8)] + [[0, 0, 0, word] for word in (4, 8)]
    warps = [[wave, 0, 0, 0] for wave in powers(1, waves)]
    return gl.DistributedLinearLayout(registers, lanes, warps, [], [waves, 2, 16, words])


@gluon.constexpr_function
def query_layout(waves, width):
    """[waves, width, 16] for keys of 8 bits: 16 neighbours in a lane, where `key_layout` has 4
    words.
    """
    registers = [[0, element, 0] for element in (1, 2, 4, 8, *powers(64, width))]
    lanes = [[0, 0, head] for head in (1, 2, 4, 8)] + [[0, 16, 0], [0, 32, 0]]
    warps = [[wave, 0, 0] for wave in powers(1, waves)]
    return gl.DistributedLinearLayout(registers, lanes, warps, [], [waves, width, 16])


@gluon.constexpr_function
def value_layout(waves, words):
    """[waves, 4, 8, words]: 4 groups of 8 tokens; a lane has a sixteenth of all 8 rows of one."""
    registers = [[0, 0, 0, word] for word in powers(1, words // 16)]
    registers += [[0, 0, token, 0] for token in (1, 2, 4)]
    lanes = [[0, 0, 0, word] for word in powers(words // 16, words)]
    lanes += [[0, group, 0, 0] for group in (1, 2)]
    warps = [[wave, 0, 0, 0] for wave in powers(1, waves)]
    return gl.DistributedLinearLayout(registers, lanes, warps, [], [waves, 4, 8, words])


@gluon.constexpr_function
def output_layout(waves, width):
    """[waves, 16, width]: all waves' numbers for one place in one lane, 4 neighbours a lane."""
    places = [[0, 0, element] for element in powers(4, width)]
    places += [[0, head, 0] for head in (1, 2, 4, 8)]
    inside = 6 + len(powers(1, waves))
    registers = [[wave, 0, 0] for wave in powers(1, waves)] + [[0, 0, 1], [0, 0, 2]]
    return gl.DistributedLinearLayout(
        registers + places[inside:], places[:6], places[6:inside], [], [waves, 16, width]
    )


@gluon.constexpr_function
def statistics_layout(waves, width):
    """[waves, 16, 2]: two numbers of each head and wave where `output_layout` has the head."""
    whole = output_layout(waves, width)
    bases = [
        [[wave, head, 0] for wave, head, _ in kind]
        for kind in (whole.reg_bases, whole.lane_bases, whole.warp_bases)
    ]
    registers = [[0, 0, 1], *(basis for basis in bases[0] if basis != [0, 0, 0])]
    return gl.DistributedLinearLayout(registers, bases[1], bases[2], [], [waves, 16, 2])


@gluon.constexpr_function
def parts_layout(waves, parts, heads, width):
    """[parts, heads, width]: 4 neighbours a lane, and of one place as many parts as it may hold."""
    places = [[0, 0, element] for element in powers(4, width)]
    places += [[0, head, 0] for head in powers(1, heads)]
    places += [[part, 0, 0] for part in powers(1, parts)]
    inside = 6 + len(powers(1, waves))
    padded = places[:inside] + [[0, 0, 0]] * (inside - len(places))
    registers = [[0, 0, 1], [0, 0, 2], *places[inside:]]
    return gl.DistributedLinearLayout(registers, padded[:6], padded[6:], [], [parts, heads, width])


@gluon.constexpr_function
def weights_layout(waves, parts, heads):
    """[parts, heads]: one number a lane, the parts of a head in the lanes of one wave."""
    places = [[part, 0] for part in powers(1, parts)] + [[0, head] for head in powers(1, heads)]
    inside = 6 + len(powers(1, waves))
    padded = places[:inside] + [[0, 0]] * (inside - len(places))
    return gl.DistributedLinearLayout(places[inside:], padded[:6], padded[6:], [], [parts, heads])


@gluon.constexpr_function
def waves_layout(waves):
    """[waves]: one number for each wave, the same in all of its lanes."""
    warps = [[wave] for wave in powers(1, waves)]
    return gl.DistributedLinearLayout([], [[0]] * 6, warps, [], [waves])


@gluon.constexpr_function
def _line(layout, axis, rank):
    """The layout of one axis of a tensor of `rank` axes."""
    for other in range(rank - 1, -1, -1):
        if other != axis:
            layout = gl.SliceLayout(other, layout)
    return layout


@gluon.jit
def axis_index(size: gl.constexpr, axis: gl.constexpr, rank: gl.constexpr, layout: gl.constexpr):
    """0 .. size - 1 along `axis`; the other axes of `layout` are 1 long."""
    index = gl.arange(0, size, layout=_line(layout, axis, rank))
    for other in gl.static_range(rank):
        if other != axis:
            index = gl.expand_dims(index, other)
    return index


@gluon.jit
def token_and_head(row, heads, QUERY_LEN: gl.constexpr):
    """(token, head) of rows: the heads of one token after the other's, QUERY_LEN tokens."""
    if QUERY_LEN == 1:
        return row * 0, row
    else:
        return row // heads, row % heads


@gluon.jit
def visible_start(low, TILE: gl.constexpr):
    """First token of the tile that holds the first visible one."""
    return low // TILE * TILE


@gluon.jit
def first_visible(seq_len, window, HAS_WINDOW: gl.constexpr):
    """The first token that the last token of the sequence sees."""
    if HAS_WINDOW:
        return gl.maximum(seq_len - window, 0)
    else:
        return seq_len * 0


@gluon.jit
def group_pages(table_row_ptr, first_token, low, end, BLOCK_SIZE: gl.constexpr):
    """The blocks of groups of 8 tokens. Where a group holds no token of [low, end), any of theirs.

    No other entry of the block table is read: it may be anything.
    """
    token = gl.maximum(gl.minimum(gl.maximum(first_token, low), end - 1), 0)
    return gl.load(table_row_ptr + token // BLOCK_SIZE)


@gluon.jit
def row_pointers(
    head_ptr, zeros_ptr, pages, token, low, end, stride_block, stride_row, BLOCK_SIZE: gl.constexpr
):
    """Where the rows of the tokens are; those outside [low, end) are zeros.

    Rows outside may hold NaN, which would spread from 0 * NaN, and a masked load of 64-bit
    addresses is a branch with a wait behind it; reading zeros from L1 is neither.
    """
    pointers = head_ptr + pages.to(gl.int64) * stride_block + token % BLOCK_SIZE * stride_row
    pointers = gl.where((token >= low) & (token < end), pointers, zeros_ptr)
    return pointers.to(gl.pointer_type(gl.int32), bitcast=True)


@gluon.jit
def key_rows(
    head_ptr, zeros_ptr, pages, group, low, end, stride_block, stride_row,
    BLOCK_SIZE: gl.constexpr, W: gl.constexpr, WORDS_PAD: gl.constexpr,
):  # fmt: skip
    """Where the keys of a tile are: [W, 2, 16, 1] in `key_layout`; group and pages: [W, 16]."""
    rows: gl.constexpr = gl.SliceLayout(3, key_layout(W, WORDS_PAD))
    token = gl.expand_dims(group, 1) + (
        axis_index(2, 1, 3, rows) * 4 + axis_index(16, 2, 3, rows) % 4
    )
    pointers = row_pointers(
        head_ptr, zeros_ptr, gl.expand_dims(pages, 1), token, low, end, stride_block, stride_row,
        BLOCK_SIZE,
    )  # fmt: skip
    return gl.expand_dims(pointers, 3)


@gluon.jit
def value_rows(
    head_ptr, zeros_ptr, pages, group, low, end, stride_block, stride_row,
    BLOCK_SIZE: gl.constexpr, W: gl.constexpr, WORDS_PAD: gl.constexpr,
):  # fmt: skip
    """Where the values of a tile are: [W, 4, 8, 1] in `value_layout`; group and pages: [W, 4]."""
    rows: gl.constexpr = gl.SliceLayout(3, value_layout(W, WORDS_PAD))
    token = gl.expand_dims(group, 2) + axis_index(8, 2, 3, rows)
    pointers = row_pointers(
        head_ptr, zeros_ptr, gl.expand_dims(pages, 2), token, low, end, stride_block, stride_row,
        BLOCK_SIZE,
    )  # fmt: skip
    return gl.expand_dims(pointers, 3)


@gluon.jit
def load_words(rows, zeros_ptr, layout: gl.constexpr, WORDS: gl.constexpr, WORDS_PAD: gl.constexpr):
    """[..., WORDS_PAD] in `layout`: the words of the rows; past the end of a row, zeros."""
    word = axis_index(WORDS_PAD, 3, 4, layout)
    pointers = rows + word
    if WORDS < WORDS_PAD:
        zeros = zeros_ptr.to(gl.pointer_type(gl.int32), bitcast=True)
        pointers = gl.where(word < WORDS, pointers, zeros + word)
    return gl.load(pointers)


@gluon.jit
def numbers(words, dtype: gl.constexpr):
    """[..., n] words as [..., n, 2] numbers of 16 bits."""
    low = words.to(gl.int16).to(dtype, bitcast=True)
    high = (words >> 16).to(gl.int16).to(dtype, bitcast=True)
    return gl.join(low, high)


@gluon.jit
def cached_numbers(words, cache: gl.constexpr, dtype: gl.constexpr):
    """[..., n] words of a cache as numbers of 16 bits: [..., n, 2], or of fp8 [..., n, 2, 2]."""
    if cache.primitive_bitwidth == 8:
        return numbers(words_from_fp8(words, dtype), dtype)
    else:
        return numbers(words, dtype)


@gluon.jit
def words_from_fp8(words, dtype: gl.constexpr):
    """[..., n] words of the chip's own e4m3 as [..., n, 2] words of two 16-bit numbers, all exact.

    The hardware converts two at a time to float32, of which bfloat16 is the upper half.
    """
    low = gl.inline_asm_elementwise(
        "v_cvt_pk_f32_fp8 $0, $1", "=v,v", [words], gl.int64, is_pure=True, pack=1
    )
    high = gl.inline_asm_elementwise(
        "v_cvt_pk_f32_fp8_sdwa $0, $1 src0_sel:WORD_1",
        "=v,v",
        [words],
        gl.int64,
        is_pure=True,
        pack=1,
    )
    return gl.join(narrow_pair(low, dtype), narrow_pair(high, dtype))


@gluon.jit
def narrow_pair(pair, dtype: gl.constexpr):
    """Two float32 in 64 bits as two exact numbers of 16 bits in 32."""
    first = pair.to(gl.int32)
    second = (pair >> 32).to(gl.int32)
    if dtype == gl.bfloat16:
        return (second & -65536) | (first >> 16 & 65535)
    else:
        return gl.inline_asm_elementwise(
            "v_cvt_pkrtz_f16_f32 $0, $1, $2",
            "=v,v,v",
            [first, second],
            gl.int32,
            is_pure=True,
            pack=1,
        )


@gluon.jit
def in_order_of_keys(matrix, axis: gl.constexpr):
    """[W, D, N] or [W, N, D] with D as keys of 8 bits lie: 16 neighbours a lane, in two eights.

    Position c * 64 + h * 32 + g * 8 + j takes element c * 64 + g * 16 + h * 8 + j.
    """
    W: gl.constexpr = matrix.shape[0]
    D: gl.constexpr = matrix.shape[axis]
    if axis == 1:
        matrix = gl.reshape(matrix, [W, D // 64, 4, 2, 8, matrix.shape[2]])
        return gl.reshape(gl.permute(matrix, [0, 1, 3, 2, 4, 5]), [W, D, matrix.shape[5]])
    else:
        matrix = gl.reshape(matrix, [W, matrix.shape[1], D // 64, 4, 2, 8])
        return gl.reshape(gl.permute(matrix, [0, 1, 2, 4, 3, 5]), [W, matrix.shape[1], D])


@gluon.jit
def in_order_of_elements(matrix):
    """[W, N, D] from the order of `in_order_of_keys` back to that of the elements."""
    W: gl.constexpr = matrix.shape[0]
    N: gl.constexpr = matrix.shape[1]
    D: gl.constexpr = matrix.shape[2]
    matrix = gl.reshape(matrix, [W, N, D // 64, 2, 4, 8])
    return gl.reshape(gl.permute(matrix, [0, 1, 2, 4, 3, 5]), [W, N, D])
