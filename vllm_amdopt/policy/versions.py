"""Version ranges such as ">=0.30,<0.34", without a packaging library.

Only release numbers count: 0.32.0+cpu and 0.32.0rc1 both are 0.32.0.
"""

import re

_RELEASE = re.compile(r"v?(\d+(?:\.\d+)*)")
_BOUND = re.compile(r"(>=|<)(\d+(?:\.\d+)*)")


def release(version: str) -> tuple[int, ...] | None:
    """The release numbers of a version ("0.32.0+cpu" -> (0, 32, 0)), or None if there are none."""
    found = _RELEASE.match(version.strip())
    return tuple(int(part) for part in found.group(1).split(".")) if found else None


def contains(version_range: str, version: str) -> bool | None:
    """Whether `version` lies in `version_range` (bounds `>=A` and `<B`); None if unreadable."""
    numbers = release(version)
    if numbers is None:
        return None
    for bound in version_range.split(","):
        found = _BOUND.fullmatch(bound.strip())
        if found is None:
            raise ValueError(f"{version_range!r} is not a version range such as '>=0.30,<0.34'")
        limit = tuple(int(part) for part in found.group(2).split("."))
        width = max(len(limit), len(numbers))
        padded, padded_limit = (parts + (0,) * (width - len(parts)) for parts in (numbers, limit))
        if (padded < padded_limit) if found.group(1) == ">=" else (padded >= padded_limit):
            return False
    return True
