"""The diff reader: what it applies it can take back to the byte, and it never guesses."""

from __future__ import annotations

import difflib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_amdopt.patching.unified_diff import DiffError, read_diff

# Few different lines, so that the same ones stand in many places.
LINES = st.lists(
    st.sampled_from([b"a\n", b"b\n", b"\n", b" c\r\n", b"-d\n", b"\xff\n"]), max_size=25
)
ENDS = st.sampled_from([b"", b"last", b"a"])


def written(before: bytes, after: bytes, context: int = 3) -> bytes:
    """The diff of two contents, as `diff -u` writes it."""
    old, new = (content.split(b"\n") for content in (before, after))
    sides = [
        [line + b"\n" for line in lines[:-1]] + [line for line in lines[-1:] if line]
        for lines in (old, new)
    ]
    lines = difflib.diff_bytes(
        difflib.unified_diff, *sides, b"a/some/file.py", b"b/some/file.py", n=context
    )
    return b"".join(
        line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n"
        for line in lines
    )


@settings(max_examples=400, deadline=None)
@given(LINES, ENDS, LINES, ENDS, st.integers(0, 4))
def test_apply_gives_the_new_and_reverse_the_old_bytes(
    old: list[bytes], old_end: bytes, new: list[bytes], new_end: bytes, context: int
) -> None:
    before, after = b"".join(old) + old_end, b"".join(new) + new_end
    if before == after:
        return
    (diff,) = read_diff(b"Subject: a message\n\n" + written(before, after, context))
    assert diff.path == "some/file.py"
    assert diff.apply(before) == after
    assert diff.reversed.apply(after) == before
    assert diff.reversed.reversed == diff


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_one_changed_byte_of_context_is_refused(data: st.DataObject) -> None:
    """All lines differ, so that there is no other place either."""
    lines = [b"line %d\n" % number for number in range(20)]
    at = data.draw(st.integers(3, 16))
    after = [*lines[:at], b"new\n", *lines[at + 1 :]]
    (diff,) = read_diff(written(b"".join(lines), b"".join(after)))
    spoiled = data.draw(st.integers(at - 3, at + 3))
    changed = [*lines[:spoiled], lines[spoiled].upper(), *lines[spoiled + 1 :]]
    with pytest.raises(DiffError, match="what part 1 of the diff expects is not found"):
        diff.apply(b"".join(changed))


BEFORE = b"one\ntwo\nthree\nfour\nfive\n"
AFTER = b"one\ntwo\nTHREE\nfour\nfive\n"


def test_a_place_that_moved_is_found_if_there_is_only_one() -> None:
    (diff,) = read_diff(written(BEFORE, AFTER, context=1))
    assert diff.apply(b"zero\n" * 7 + BEFORE) == b"zero\n" * 7 + AFTER
    assert diff.reversed.apply(b"zero\n" * 7 + AFTER) == b"zero\n" * 7 + BEFORE
    with pytest.raises(DiffError, match="fits at 2 places"):
        diff.apply(b"zero\n" * 7 + BEFORE + BEFORE)


def test_a_second_part_is_looked_for_after_the_first_only() -> None:
    text = b"a\nx\nb\n" * 2
    (diff,) = read_diff(written(text, b"a\nx\nB\na\nX\nb\n", context=0))
    assert diff.apply(text) == b"a\nx\nB\na\nX\nb\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param(b"hello\n", "there is no '--- a/FILE' line", id="no diff"),
        pytest.param(b"--- a/f\n+++ b/f\n", "there is no '--- a/FILE' line", id="no hunk, no end"),
        pytest.param(b"--- a/f\n+++ b/f\nx\n", "there is no '@@", id="no hunk"),
        pytest.param(b"--- /dev/null\n+++ b/f\n@@ -0,0 +1 @@\n+a\n", "makes or deletes", id="new"),
        pytest.param(
            b"--- a/f\n+++ b/g\n@@ -1 +1 @@\n-a\n+b\n", "renames a/f to b/g", id="renamed"
        ),
        pytest.param(
            b"--- a/../f\n+++ b/../f\n@@ -1 +1 @@\n-a\n+b\n", "not a file below", id="outside"
        ),
        pytest.param(b"--- /f\n+++ /f\n@@ -1 +1 @@\n-a\n+b\n", "not a file below", id="absolute"),
        pytest.param(b"--- a/f\n+++ b/f\n@@ -1,2 +1 @@\n-a\n+b\n", "shorter or longer", id="short"),
        pytest.param(b"--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n-b\n", "shorter or longer", id="long"),
        pytest.param(b"--- a/f\n+++ b/f\n@@ -1 +1 @@\nxa\n+b\n", "begins with b'x'", id="odd line"),
        pytest.param(
            b"--- a/f\n+++ b/f\n@@ -5 +5 @@\n-a\n+b\n@@ -1 +1 @@\n-a\n+b\n",
            "overlap or are out of order",
            id="order",
        ),
        pytest.param(
            b"--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n" * 2, "occurs twice", id="file twice"
        ),
    ],
)
def test_what_is_no_change_of_a_file_is_refused(text: bytes, sentence: str) -> None:
    with pytest.raises(DiffError, match=sentence):
        read_diff(text)


def test_a_line_without_an_end_can_only_be_the_last() -> None:
    (diff,) = read_diff(written(b"a\nb", b"a\nc"))
    with pytest.raises(DiffError, match="is not found"):
        diff.apply(b"a\nb\n")
    (diff,) = read_diff(written(b"b", b"c", context=0))
    with pytest.raises(DiffError, match="without an end"):
        (inserted,) = read_diff(
            b"--- a/f\n+++ b/f\n@@ -0,0 +1 @@\n+x\n\\ No newline at end of file\n"
        )
        inserted.apply(b"y\n")
    assert diff.apply(b"b") == b"c"
