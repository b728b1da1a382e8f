"""Reading a Hugging Face config.json's dictionaries: one field at a time, in words where it fails.

Not about what the fields mean. Functions named `optional_*` raise ModelConfigError for a value of
the wrong kind; those named `lenient_*` read it as absent, for facts that nothing else rests on.
"""

from collections.abc import Iterable, Mapping

LARGEST = 2**63 - 1
"""No size of a model is larger; a number above it is not one."""


class ModelConfigError(ValueError):
    """A model configuration that cannot be read; the message is one sentence for the user."""


def mapping(config: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


def string(config: Mapping[str, object], key: str) -> str | None:
    """A text of one line; one with control characters or broken Unicode is nobody's name."""
    value = config.get(key)
    return value if isinstance(value, str) and value and value.isprintable() else None


def strings(config: Mapping[str, object], key: str) -> tuple[str, ...]:
    """The texts of a list, each of one line; what else stands in it is left out."""
    value = config.get(key)
    if not isinstance(value, list):
        return ()
    return tuple(item for item in value if isinstance(item, str) and item.isprintable())


def number(config: Mapping[str, object], key: str) -> float | None:
    value = config.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= LARGEST:
        return float(value)
    return None


def required_whole(config: Mapping[str, object], keys: Iterable[str], *, what: str) -> int:
    """The first of `keys` that is given, as a positive whole number; an error if none is."""
    keys = tuple(keys)
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        whole = as_whole(value)
        if whole is None or whole <= 0:
            raise ModelConfigError(f"{key} is {shown(value)}, expected a positive whole number")
        return whole
    raise ModelConfigError(f"the {what} is not given ({' or '.join(keys)} is missing)")


def optional_whole(config: Mapping[str, object], keys: Iterable[str]) -> int | None:
    """The first of `keys` that is given; None if none is, or where 0 or null mean "not used"."""
    for key in keys:
        value = config.get(key)
        if value is None or value is False:
            continue
        whole = as_whole(value)
        if whole is None or whole < 0:
            raise ModelConfigError(f"{key} is {shown(value)}, expected a whole number")
        return whole or None
    return None


def lenient_whole(config: Mapping[str, object], keys: Iterable[str]) -> int | None:
    """As optional_whole, but a value of the wrong kind reads as absent."""
    for key in keys:
        whole = as_whole(config.get(key))
        if whole is not None and whole > 0:
            return whole
    return None


def as_whole(value: object) -> int | None:
    """An int, an integral float, or the largest of a list of them (one entry a layer)."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if abs(value) <= LARGEST else None
    if isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST:
        return int(value)
    if isinstance(value, list) and value:
        numbers = [as_whole(item) for item in value if not isinstance(item, list)]
        known = [whole for whole in numbers if whole is not None]
        return max(known) if len(known) == len(value) else None
    return None


def block(value: object) -> tuple[int, int] | None:
    """A pair of positive whole numbers: the block that one scale of a weight covers."""
    if isinstance(value, list) and len(value) == 2:
        rows, columns = (None if isinstance(item, list) else as_whole(item) for item in value)
        if rows is not None and columns is not None and rows > 0 and columns > 0:
            return rows, columns
    return None


def shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int too long to write, a list without end
        return f"a {json_word(value)} too long to write"
    return text if len(text) <= 60 else text[:57] + "..."


def json_word(value: object) -> str:
    words = {list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else words.get(type(value), type(value).__name__)
