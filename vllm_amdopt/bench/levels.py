"""What a row asked of the server, in words and in an order; knows no arm and no statistics."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
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
    fields: Mapping[str, Any] = field(compare=False)
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
    rest = {key: value for key, value in fields.items() if key not in (name, *_SIZES)}
    return Level(
        key=level_key(fields),
        fields=fields,
        load_name=name,
        load=float(fields[name]) if name else None,
        group=level_key({**rest, "load": name}),
        group_label=_group_label(rest),
    )


_SIZES = ("prompts", "warmup_prompts")
"""How long a level is measured; it grows with the load and makes no other workload."""


def _is_load(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _group_label(fields: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in fields.items() if value not in (None, 0, "")}
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
    levels = _with_lengths(list(found.values()))
    groups = {level.group: index for index, level in reversed(list(enumerate(levels)))}
    return tuple(sorted(levels, key=lambda level: (groups[level.group], level.load or 0.0)))


def _with_lengths(levels: list[Level]) -> list[Level]:
    """The same load for a short and for a long time are two workloads, not two points of one."""
    counted = Counter((level.group, level.load) for level in levels if level.load is not None)
    twice = {group for (group, _), count in counted.items() if count > 1}
    told = []
    for level in levels:
        prompts = level.fields.get("prompts")
        if level.group in twice and level.load and prompts is not None and _is_load(prompts):
            each = f"{prompts / level.load:g} prompts for each {_UNITS[level.load_name or '']}"
            level = replace(
                level, group=f"{level.group} {each}", group_label=f"{level.group_label}, {each}"
            )
        told.append(level)
    return told


_UNITS = {"concurrency": "request in flight", "request_rate": "request/s"}
