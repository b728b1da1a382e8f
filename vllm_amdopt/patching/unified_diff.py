"""Unified diffs, read and applied strictly: no fuzz, no guessing. Not `patch`: no file is touched.

Works on bytes, so that what is put back is exactly what was there, whatever its line ends are.
"""

import re
from dataclasses import dataclass

_RANGES = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


class DiffError(ValueError):
    """A diff that cannot be read, or that does not fit; the message is one sentence."""


@dataclass(frozen=True)
class Hunk:
    """One place: the lines there, and the lines that come instead, each with its line end.

    `start` and `new_start` count lines from 0: where the diff says the place is, before and after.
    """

    start: int
    new_start: int
    before: tuple[bytes, ...]
    after: tuple[bytes, ...]

    @property
    def reversed(self) -> "Hunk":
        """The hunk that takes this one back."""
        return Hunk(self.new_start, self.start, self.after, self.before)


@dataclass(frozen=True)
class FileDiff:
    """What a diff does to one file; `path` is without the a/ and b/ in front."""

    path: str
    hunks: tuple[Hunk, ...]

    @property
    def reversed(self) -> "FileDiff":
        """The diff that takes this one back."""
        return FileDiff(self.path, tuple(hunk.reversed for hunk in self.hunks))

    def apply(self, content: bytes) -> bytes:
        """`content` with the hunks applied. DiffError where one does not fit to the byte."""
        lines = _lines(content)
        result: list[bytes] = []
        done = 0
        for number, hunk in enumerate(self.hunks, start=1):
            place = self._place(lines, hunk, done, number)
            result += lines[done:place]
            result += hunk.after
            done = place + len(hunk.before)
        result += lines[done:]
        unended = [line for line in result[:-1] if not line.endswith(b"\n")]
        if unended:
            raise DiffError(f"{self.path}: a line without an end would stand before others")
        return b"".join(result)

    def _place(self, lines: list[bytes], hunk: Hunk, done: int, number: int) -> int:
        """The line where a hunk fits: the one that the diff names, or the only other one."""
        length = len(hunk.before)

        def fits(place: int) -> bool:
            return tuple(lines[place : place + length]) == hunk.before

        if hunk.start >= done and hunk.start + length <= len(lines) and fits(hunk.start):
            return hunk.start
        if not length:
            raise DiffError(f"{self.path}: part {number} has no context and no such line")
        places = [place for place in range(done, len(lines) - length + 1) if fits(place)]
        if len(places) == 1:
            return places[0]
        found = f"fits at {len(places)} places" if places else "is not found"
        raise DiffError(f"{self.path}: what part {number} of the diff expects {found}")


def read_diff(text: bytes) -> tuple[FileDiff, ...]:
    """The files that a unified diff changes. What stands before the first file is a message.

    Raises DiffError for anything that is no change of an existing file.
    """
    lines = _lines(text)
    files: list[FileDiff] = []
    position = 0
    while position < len(lines):
        if not (lines[position].startswith(b"--- ") and position + 2 < len(lines)):
            position += 1
            continue
        if not lines[position + 1].startswith(b"+++ "):
            position += 1
            continue
        path = _path(lines[position], lines[position + 1])
        hunks, position = _hunks(lines, position + 2, path)
        files.append(FileDiff(path, hunks))
    if not files:
        raise DiffError("there is no '--- a/FILE' line in the diff")
    if len({file.path for file in files}) != len(files):
        raise DiffError("a file occurs twice in the diff")
    return tuple(files)


def _lines(content: bytes) -> list[bytes]:
    """The lines with their ends; only the last may have none."""
    return re.findall(rb"[^\n]*\n|[^\n]+", content)


def _path(old: bytes, new: bytes) -> str:
    names = [line[4:].split(b"\t")[0].strip().decode() for line in (old, new)]
    if "/dev/null" in names:
        raise DiffError("the diff makes or deletes a file, which is not supported")
    stripped = {re.sub(r"^[ab]/", "", name) for name in names}
    if len(stripped) != 1:
        raise DiffError(f"the diff renames {names[0]} to {names[1]}, which is not supported")
    path = stripped.pop()
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise DiffError(f"the diff names {path!r}, which is not a file below a folder")
    return path


def _hunks(lines: list[bytes], position: int, path: str) -> tuple[tuple[Hunk, ...], int]:
    hunks: list[Hunk] = []
    end = 0
    while position < len(lines) and (head := _RANGES.match(lines[position])):
        start, length, new_start, new_length = (
            1 if number is None else int(number) for number in head.groups()
        )
        before, after, position = _body(lines, position + 1, (length, new_length), path)
        # "-7,0" stands after line 7; any other start is that of the first line.
        hunk = Hunk(start - bool(length), new_start - bool(new_length), before, after)
        if hunk.start < end:
            raise DiffError(f"{path}: the parts of the diff overlap or are out of order")
        end = hunk.start + length
        hunks.append(hunk)
    if not hunks:
        raise DiffError(f"{path}: there is no '@@ -1,2 +1,2 @@' line in the diff")
    return tuple(hunks), position


def _body(
    lines: list[bytes], position: int, lengths: tuple[int, int], path: str
) -> tuple[tuple[bytes, ...], tuple[bytes, ...], int]:
    before: list[bytes] = []
    after: list[bytes] = []
    while (len(before), len(after)) != lengths:
        if position == len(lines) or len(before) > lengths[0] or len(after) > lengths[1]:
            raise DiffError(f"{path}: a part of the diff is shorter or longer than it says")
        line = lines[position]
        position += 1
        kind, text = line[:1], line[1:]
        if line == b"\n":  # an editor took the space away from an empty line of context
            kind, text = b" ", b"\n"
        if kind not in b" -+" or not kind:
            raise DiffError(f"{path}: a line of the diff begins with {kind!r}")
        unended = position < len(lines) and lines[position].startswith(b"\\ ")
        if unended:
            text = text.removesuffix(b"\n")
            position += 1
        if kind != b"+":
            before.append(text)
        if kind != b"-":
            after.append(text)
    return tuple(before), tuple(after), position
