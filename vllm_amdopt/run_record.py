"""The run record: one JSON file that holds a measurement with all that is needed to judge it.

It holds numbers and where they are from; it computes nothing from them (`bench.analysis` does) and
measures nothing. Standard library only, because the serving, start-up, kernel and accuracy tools
all write it.
"""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vllm_amdopt.redaction import redacted_command, redacted_environment

SCHEMA_VERSION = 1

KINDS = (
    "serving_ab",
    "serving_aa",
    "serving_ablation",
    "startup",
    "accuracy_logits",
    "accuracy_tasks",
    "kernels",
)

STATUSES = ("ok", "unsupported", "error", "tainted")
"""`unsupported`: the arm cannot do this; `error`: it should have and did not; `tainted`: a number
was measured and something spoiled it. Only `ok` rows are analysed, all others carry a reason."""

FILE_NAME = "record.json"
SUFFIX = ".record.json"


class RecordError(ValueError):
    """A run record cannot be read, written or compared; the message is a sentence for the user."""


@dataclass(frozen=True)
class Arm:
    """One side of a comparison. The first arm of a record is the baseline.

    `environment`: the variables set for this arm, secrets hidden. `plan`: what the plugin decided
    there, None where it was inactive. `evidence`: log lines that show that the treatment was
    active (or that it was not).
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    serve_arguments: tuple[str, ...] = ()
    plan: Mapping[str, Any] | None = None
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One measured run.

    `block`: one launch of every arm, counted from 0. `order`: the arms' order in that block, by
    letter ("AB", "BA"). `position`: the place of this arm in it, from 0. `level`: what was asked
    of the server (`dataset`, `input_len`, `output_len`, `concurrency` or `request_rate`; `mode`
    for a start-up). `metrics`: finite numbers by the names of `vllm bench serve`; empty unless
    something was measured. `details`: anything else worth keeping, for instance the raw file.
    """

    block: int
    arm: str
    level: Mapping[str, Any]
    status: str
    order: str = "AB"
    position: int = 0
    repetition: int = 0
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """How the numbers are judged, declared before the first of them is measured.

    `primary` and `gated` are `metric`, for the geometric mean over all levels, or `metric@16`,
    for the levels of concurrency (or request rate) 16. `margin`: a worsening of less than this
    share is no regression. `slo`: upper limits of latency metrics, for the highest concurrency
    that keeps them.
    """

    primary: str = "output_throughput"
    gated: tuple[str, ...] = ()
    margin: float = 0.01
    confidence: float = 0.95
    slo: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A finished table that a tool wants in its report: cells are shown as they are, escaped."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Conclusion:
    """What a tool that judges its own numbers (accuracy, kernels) concluded.

    `outcome`: "passed", "failed" or "inconclusive".
    """

    outcome: str
    sentence: str


OUTCOMES = ("passed", "failed", "inconclusive")


@dataclass(frozen=True)
class RunRecord:
    """One measurement. `commands`: what reproduces it. `notes`: limits that the reader must know.

    `synthetic`: the numbers were made up, to show or to test something; every report says so.
    """

    kind: str
    created: str
    arms: tuple[Arm, ...]
    rows: tuple[Row, ...] = ()
    title: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    software: Mapping[str, Any] = field(default_factory=dict)
    workload: Mapping[str, Any] = field(default_factory=dict)
    judgement: Judgement = field(default_factory=Judgement)
    environment_difference: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    conclusion: Conclusion | None = None
    synthetic: bool = False
    schema_version: int = SCHEMA_VERSION


def now() -> str:
    """The time of creation as records hold it: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_record(kind: str, arms: Iterable[Arm], **known: Any) -> RunRecord:
    """A record of now, with secrets hidden in the arms and their difference worked out."""
    shown = tuple(
        Arm(
            arm.name,
            redacted_environment(arm.environment),
            tuple(redacted_command(arm.serve_arguments)),
            arm.plan,
            arm.evidence,
        )
        for arm in arms
    )
    record = RunRecord(
        kind=kind,
        created=now(),
        arms=shown,
        environment_difference=environment_difference(shown),
        **known,
    )
    return parse(as_json(record), "the new record")


def environment_difference(arms: Iterable[Arm]) -> dict[str, dict[str, str | None]]:
    """Variables and serve arguments in which arms differ: name -> arm -> value, None if not set."""
    settings = {
        arm.name: dict(arm.environment)
        | ({"(serve arguments)": " ".join(arm.serve_arguments)} if arm.serve_arguments else {})
        for arm in arms
    }
    names = sorted({name for values in settings.values() for name in values})
    found = {name: {arm: values.get(name) for arm, values in settings.items()} for name in names}
    return {name: values for name, values in found.items() if len(set(values.values())) > 1}


# --- writing ------------------------------------------------------------------------------------


def as_json(record: RunRecord) -> dict[str, Any]:
    """The record as JSON holds it, the schema version first."""
    content = asdict(record)
    return {"schema_version": content.pop("schema_version"), **content}


def save(record: RunRecord, path: Path) -> None:
    """Write the record whole or not at all: a reader never sees half of one.

    Raises RecordError for a record that `load` would refuse, and where the file cannot be written.
    """
    parse(as_json(record), f"the record for {path}")
    text = json.dumps(as_json(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


def write_atomically(path: Path, content: bytes) -> None:
    """The content under a name beside `path`, synchronised, then renamed over it."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would hide it from colleagues
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise RecordError(
            f"{path} cannot be written ({error.strerror}); what was there before is untouched: "
            "free some space or choose another directory"
        ) from error


# --- reading ------------------------------------------------------------------------------------


def find_records(path: Path) -> list[Path]:
    """The records at `path`: the file itself, or each record.json and *.record.json below it."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise RecordError(f"{path} does not exist: name a run record or a directory that holds one")
    found = sorted({*path.rglob(FILE_NAME), *path.rglob(f"*{SUFFIX}")})
    if not found:
        raise RecordError(
            f"{path} holds no run record ({FILE_NAME} or *{SUFFIX}): "
            "name the directory that a measurement was written to"
        )
    return found


def load(path: Path) -> RunRecord:
    """Read a record; raises RecordError that says in words what is wrong with the file."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is no text file, so no run record") from error
    if not text.strip():
        raise RecordError(
            f"{path} is empty: the measurement that should have filled it was cut off"
        )
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated")
        what = (
            f"ends in the middle (line {error.lineno}): it was truncated; run the measurement "
            "again, or take it from a backup"
            if text.lstrip().startswith("{") and at_end
            else f"is not JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        )
        raise RecordError(f"{path} {what}") from error
    except (_ConstantError, RecursionError) as error:
        raise RecordError(f"{path} is no run record: {error}") from error
    return parse(content, str(path))


class _ConstantError(Exception):
    pass


def _no_constant(name: str) -> Any:
    raise _ConstantError(f"it holds {name}, and records hold finite numbers only")


def parse(content: Any, where: str) -> RunRecord:
    """A record from what JSON gave; raises RecordError with the first thing that is wrong."""
    if not isinstance(content, dict):
        raise RecordError(f"{where} is no run record: a record is an object with a schema_version")
    if "schema_version" not in content:
        raise RecordError(f"{where} is no run record: it has no schema_version{_foreign(content)}")
    version = content["schema_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RecordError(f"{where}: schema_version is {version!r}, and has to be a number from 1")
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"{where} was written by a newer vllm-amdopt (schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}): update vllm-amdopt to read it"
        )
    return _Reader(where).record(content)


def _foreign(content: Mapping[str, Any]) -> str:
    if {"request_throughput", "completed"} & set(content):
        return " (it looks like one result of `vllm bench serve`; records are made of many)"
    if "results" in content and "config" in content:
        return " (it looks like a result of lm-eval)"
    return ""


_REQUIRED = ("kind", "created", "arms", "rows")


class _Reader:
    """Builds the parts of a record, naming the place where something is wrong."""

    def __init__(self, where: str) -> None:
        self.where = where

    def wrong(self, place: str, what: str) -> RecordError:
        return RecordError(f"{self.where}: {place} {what}")

    def record(self, content: Mapping[str, Any]) -> RunRecord:
        for name in _REQUIRED:
            if name not in content:
                raise self.wrong("the record", f"has no {name!r}; it is incomplete")
        known = self.known(RunRecord, content, "the record")
        if known["kind"] not in KINDS:
            raise self.wrong("kind", f"is {known['kind']!r}, and has to be one of {_list(KINDS)}")
        self.time(known["created"])
        known["arms"] = tuple(
            self.arm(arm, f"arm {index + 1}")
            for index, arm in enumerate(self.sequence(known["arms"], "arms"))
        )
        names = [arm.name for arm in known["arms"]]
        if not names or len(set(names)) < len(names):
            raise self.wrong("arms", "have to be one or more, each with a name of its own")
        known["rows"] = tuple(
            self.row(row, f"row {index + 1}", names)
            for index, row in enumerate(self.sequence(known["rows"], "rows"))
        )
        self.unique(known["rows"])
        for name in ("machine", "software", "workload", "environment_difference"):
            self.mapping(known.get(name, {}), name)
        for name in ("commands", "notes"):
            known[name] = self.strings(known.get(name, ()), name)
        if "judgement" in known:
            known["judgement"] = self.judgement(known["judgement"])
        known["tables"] = tuple(
            self.table(table, f"table {index + 1}")
            for index, table in enumerate(self.sequence(known.get("tables", ()), "tables"))
        )
        if known.get("conclusion") is not None:
            known["conclusion"] = self.conclusion(known["conclusion"])
        if not isinstance(known.get("synthetic", False), bool):
            raise self.wrong("synthetic", "has to be true or false")
        return RunRecord(**known)

    def known(self, kind: type, content: Any, place: str) -> dict[str, Any]:
        """The fields of a dataclass; what a later release of the same schema added is left out."""
        values = self.mapping(content, place)
        names = [field.name for field in fields(kind)]
        return {name: values[name] for name in names if name in values}

    def arm(self, content: Any, place: str) -> Arm:
        known = self.known(Arm, content, place)
        if not isinstance(known.get("name"), str) or not known["name"].strip():
            raise self.wrong(place, "has no name")
        environment = self.mapping(known.get("environment", {}), f"{place}, environment")
        if not all(isinstance(value, str) for value in environment.values()):
            raise self.wrong(f"{place}, environment", "has a value that is no text")
        if known.get("plan") is not None:
            self.mapping(known["plan"], f"{place}, plan")
        for name in ("serve_arguments", "evidence"):
            known[name] = self.strings(known.get(name, ()), f"{place}, {name}")
        return Arm(**known)

    def row(self, content: Any, place: str, arms: list[str]) -> Row:
        known = self.known(Row, content, place)
        for name in ("block", "arm", "level", "status"):
            if name not in known:
                raise self.wrong(place, f"has no {name!r}")
        for name in ("block", "position", "repetition"):
            value = known.get(name, 0)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise self.wrong(f"{place}, {name}", f"is {value!r}, and has to be a number from 0")
        if known["arm"] not in arms:
            raise self.wrong(place, f"is of the arm {known['arm']!r}, which the record has not")
        self.mapping(known["level"], f"{place}, level")
        self.mapping(known.get("details", {}), f"{place}, details")
        if known["status"] not in STATUSES:
            raise self.wrong(
                f"{place}, status",
                f"is {known['status']!r}, and has to be one of {_list(STATUSES)}",
            )
        for name in ("reason", "order"):
            if not isinstance(known.get(name, ""), str):
                raise self.wrong(f"{place}, {name}", "is no text")
        metrics = self.mapping(known.get("metrics", {}), f"{place}, metrics")
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self.wrong(f"{place}, {name}", f"is {value!r}, and has to be a number")
            if not math.isfinite(value):
                raise self.wrong(f"{place}, {name}", f"is {value}: leave out what was not measured")
        if known["status"] == "ok" and not metrics:
            raise self.wrong(place, "is ok and has no metrics: a run without numbers is an error")
        if known["status"] != "ok" and not known.get("reason", "").strip():
            raise self.wrong(place, f"is {known['status']} and gives no reason")
        return Row(**known)

    def unique(self, rows: Iterable[Row]) -> None:
        seen: dict[tuple[Any, ...], int] = {}
        for number, row in enumerate(rows, start=1):
            cell = (row.block, row.arm, level_key(row.level), row.repetition)
            if cell in seen:
                raise self.wrong(
                    f"rows {seen[cell]} and {number}",
                    f"are the same cell (block {row.block}, arm {row.arm}, repetition "
                    f"{row.repetition}): a repeated run replaces the row or counts up repetition",
                )
            seen[cell] = number

    def judgement(self, content: Any) -> Judgement:
        known = self.known(Judgement, content, "judgement")
        if not isinstance(known.get("primary", ""), str):
            raise self.wrong("judgement, primary", "has to be the name of a metric")
        if "gated" in known:
            known["gated"] = self.strings(known["gated"], "judgement, gated")
        for name, low, high in (("margin", 0.0, 1.0), ("confidence", 0.5, 1.0)):
            value = known.get(name, (low + high) / 2)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self.wrong(f"judgement, {name}", f"is {value!r}, and has to be a number")
            if not low <= value < high:
                raise self.wrong(f"judgement, {name}", f"is {value}, not from {low} to {high}")
        for name, limit in self.mapping(known.get("slo", {}), "judgement, slo").items():
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0:
                raise self.wrong(f"judgement, slo, {name}", f"is {limit!r}, not above 0")
        return Judgement(**known)

    def table(self, content: Any, place: str) -> Table:
        known = self.known(Table, content, place)
        if not {"title", "head", "rows"} <= set(known):
            raise self.wrong(place, "needs a title, a head and rows")
        known["head"] = self.strings(known["head"], f"{place}, head")
        known["rows"] = tuple(
            self.strings(row, f"{place}, a row") for row in self.sequence(known["rows"], place)
        )
        if any(len(row) != len(known["head"]) for row in known["rows"]):
            raise self.wrong(place, "has a row of another length than its head")
        return Table(**known)

    def conclusion(self, content: Any) -> Conclusion:
        known = self.known(Conclusion, content, "conclusion")
        if known.get("outcome") not in OUTCOMES or not isinstance(known.get("sentence"), str):
            raise self.wrong("conclusion", f"needs a sentence and an outcome of {_list(OUTCOMES)}")
        return Conclusion(**known)

    def time(self, value: Any) -> None:
        try:
            datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise self.wrong("created", f"is {value!r}, not a time like {now()}") from None

    def mapping(self, value: Any, place: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self.wrong(place, "has to be an object")
        return value

    def sequence(self, value: Any, place: str) -> Iterable[Any]:
        if not isinstance(value, list | tuple):
            raise self.wrong(place, "has to be a list")
        return value

    def strings(self, value: Any, place: str) -> tuple[str, ...]:
        words = tuple(self.sequence(value, place))
        if not all(isinstance(word, str) for word in words):
            raise self.wrong(place, "has to be a list of texts")
        return words


def level_key(level: Mapping[str, Any]) -> str:
    """A level as a key that does not depend on the order of its fields."""
    return json.dumps(level, sort_keys=True)


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)
