"""What a row asked of the server, in words and in an order; knows no arm and no statistics."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_amdopt.run_record import Row, level_key

LOADS = {"concurrency": "concurrency", "request_rate": "requests/s"}
"""The fields of a level that are its load, and their names on an axis."""


@dataclass(frozen=True)
class Level:
    """One level. `load`: concurrency or request rate; None for a level without one (start-up).

    `group`: the key of the level without its load, the same for all points of a curve.
    """

    key: str
    fields: Mapping[str, Any]
    load_name: str | None
    load: float | None
    group: str
    group_label: str

    @property
    def label(self) -> str:
        if self.load is None:
            return self.group_label
        return f"{self.group_label}, {self.load_label}" if self.group_label else self.load_label

    @property
    def load_label(self) -> str:
        """The load with its name; of a level without a load, all of it."""
        if self.load is None:
            return self.group_label
        return f"{LOADS[self.load_name or 'concurrency']} {self.load:g}"

    @property
    def short_label(self) -> str:
        return self.group_label if self.load is None else f"{self.load:g}"


def level_of(fields: Mapping[str, Any]) -> Level:
    """A level from the fields of a row; a load that is no number above 0 counts as none."""
    name = next((name for name in LOADS if _is_load(fields.get(name))), None)
    rest = {key: value for key, value in fields.items() if key != name}
    return Level(
        key=level_key(fields),
        fields=fields,
        load_name=name,
        load=float(fields[name]) if name else None,
        group=level_key(rest),
        group_label=_group_label(rest),
    )


def _is_load(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _group_label(fields: Mapping[str, Any]) -> str:
    rest = dict(fields)
    words = [str(rest.pop(name)) for name in ("dataset", "mode") if name in rest]
    if "input_len" in rest and "output_len" in rest:
        words.append(f"{rest.pop('input_len')}/{rest.pop('output_len')}")
    words += [f"{name.replace('_', ' ')} {value}" for name, value in sorted(rest.items())]
    return " ".join(words)


def levels_of(rows: Iterable[Row]) -> tuple[Level, ...]:
    """The levels of the rows: groups in the order in which they came, loads rising."""
    found: dict[str, Level] = {}
    for row in rows:
        level = level_of(row.level)
        found.setdefault(level.key, level)
    groups = {level.group: index for index, level in reversed(list(enumerate(found.values())))}
    return tuple(sorted(found.values(), key=lambda level: (groups[level.group], level.load or 0.0)))
