"""docs/fleet.md: what vLLM does with each model on the simulated machines, stock and with ours.

`python -m tests.fleet.page` runs the whole fleet and writes the page; `--check` compares it.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fleet import models, rig, simulated_machine
from tests.fleet.rig import Combination, Fleet, Machine

PAGE = rig.ROOT / "docs" / "fleet.md"
Record = dict[str, Any]
Layout = tuple[str, int]
"""Kind of GPU and tensor-parallel size."""
FEW = 6
OURS = "vllm-amdopt: "
"""What a refusal of our own begins with."""
Cells = tuple[str, str, str, str]
SAME, AS_ASKED = "the same", "as with AITER=1"


@dataclass(frozen=True)
class Finding:
    """Something that a published source calls slower or wrong, and how to see it in a record."""

    title: str
    source: str
    found: Callable[[Combination, Record], bool]
    keys: tuple[str, ...]
    """The settings by which a rule can mend it."""


def attention(record: Record) -> set[str]:
    """The names of the attention backends, without the kinds of layers."""
    return {name.partition(" ")[0] for name in record.get("attention", ())}


AITER_SWITCHES = ("env.VLLM_ROCM_USE_AITER", "env.VLLM_ROCM_USE_AITER_MOE", "moe_backend")
FINDINGS = (
    Finding(
        "`ROCM_ATTN` where AITER's attention is installed",
        "3.6 to 4.4 times slower than `ROCM_AITER_FA` with Qwen3-235B-FP8 on MI300X to MI355X: "
        "vLLM's blog of 2026-02-27; vllm#46596, vllm#58146",
        lambda c, r: c.machine.aiter and "ROCM_ATTN" in attention(r),
        ("attention_order", "attention_backend", "env.VLLM_ROCM_USE_AITER"),
    ),
    Finding(
        "`TRITON_MLA` where AITER's MLA is installed",
        "`ROCM_AITER_MLA` is 1.33 to 1.52 times faster: vLLM's blog of 2026-02-27",
        lambda c, r: c.machine.aiter and "TRITON_MLA" in attention(r),
        ("attention_order", "attention_backend", "env.VLLM_ROCM_USE_AITER"),
    ),
    Finding(
        "gpt-oss on another backend than `ROCM_AITER_UNIFIED_ATTN`",
        "vLLM's recipe for gpt-oss names it, with block size 64",
        lambda c, r: (
            c.machine.aiter
            and c.model.startswith("gpt-oss")
            and bool(attention(r) - {"ROCM_AITER_UNIFIED_ATTN"})
        ),
        ("attention_order", "attention_backend"),
    ),
    Finding(
        "experts on Triton where AITER is installed",
        "AITER as a whole is 1.7 to 3.7 times faster with an FP8 model of experts on MI325X: "
        "vllm#56945",
        lambda c, r: c.machine.aiter and any("AITER" not in name for name in r.get("moe", ())),
        AITER_SWITCHES,
    ),
    Finding(
        "fused all-reduce and RMSNorm on gfx942",
        "wrong answers of AITER's one-stage kernel: aiter#4888, vllm#52150",
        lambda c, r: c.machine.gfx == "gfx942" and "fuse_allreduce_rms" in r.get("fusions", ()),
        ("fuse_allreduce_rms",),
    ),
    Finding(
        "`ROCM_ATTN` with a block size that its native kernel does not take",
        "only 16 and 32, else a Triton kernel: vllm/platforms/rocm.py, "
        "`use_rocm_custom_paged_attention`",
        lambda c, r: (
            c.machine.aiter and "ROCM_ATTN" in attention(r) and r.get("block_size") not in (16, 32)
        ),
        ("attention_order", "attention_backend", "block_size"),
    ),
)

UNEVEN_SHARDS = (
    "a shard of the experts is not whole blocks of 128; padding it (`padded_experts`) waits to be "
    "asked for, nobody has measured it"
)
CHUNKED = (
    "its layers attend within chunks, for which nobody has reported AITER's attention, so vLLM's "
    "own order stands"
)
LEFT = {
    (0, "llama-4-maverick"): CHUNKED,
    (0, "llama-4-scout"): CHUNKED,
    (3, "kimi-k2.5"): "vLLM has no AITER kernel for experts with 4-bit weights, but for the opt-in "
    "`flydsl` on gfx950",
    (3, "minimax-m2"): UNEVEN_SHARDS,
    (3, "minimax-m2.5"): UNEVEN_SHARDS,
    (3, "qwen3-235b-a22b-fp8"): UNEVEN_SHARDS,
    (3, "qwen3-30b-a3b-fp8"): UNEVEN_SHARDS,
}
"""What stays as vLLM has it, and why: by the number of the finding and the model."""

LEFT_BEFORE_0_32 = {
    (3, "deepseek-v2-lite"),
    (3, "qwen3-30b-a3b"),
    (3, "qwen3-coder-480b-a35b"),
}
"""Also left on vLLM 0.30 and 0.31, which do not pad unquantized experts to AITER's tile width."""

QUIET = ("environment", "aiter_switches")
"""Rules that act wherever others do, and that say nothing about one model."""


def render(fleet: Fleet) -> str:
    """The whole page."""
    parts = [
        _head(fleet),
        _refusals(fleet),
        _findings(fleet),
        _table(fleet, aiter=True),
        _table(fleet, aiter=False),
        _sentences(fleet),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(fleet: Fleet) -> str:
    kinds = sorted({c.machine.gfx for c in fleet.records})
    names = " and ".join(simulated_machine.names(kinds))
    return "\n".join(
        [
            "# The simulated fleet",
            "",
            "<!-- Generated by `make fleet`; a test compares a part of it. Do not edit. -->",
            "",
            f"What vLLM {fleet.vllm} does with {len({c.model for c in fleet.records})} published "
            f"model configurations on {names}, eight GPUs each, with tensor parallel "
            f"{_and(sorted({c.tensor_parallel for c in fleet.records}))}: as it is, as it is with "
            "`VLLM_ROCM_USE_AITER=1`, and with this plugin.",
            "",
            "**Only configuration and selection ran, no kernel.** vLLM's own ROCm code built its "
            "whole configuration and its own model class with the first layers, without memory, "
            "as rank 0; each layer selected its backend. `amdsmi`, AITER and the other packages of "
            "a ROCm image are stand-ins that have every name vLLM looks for, and AITER's tables of "
            "tuned GEMMs are taken to be empty, so linear layers are left out. Nothing here is a "
            "measurement, nothing says whether weights fit into memory, and a kernel that fails "
            "when it is called shows nothing.",
            "",
            "Changed for this:",
            "",
            *(f"* {sentence}" for sentence in models.CHANGES),
            "",
            "Notation: attention · experts · block size; `+offload` where keys and values "
            "also go to host memory; AITER at the end where it is on. Of the rules "
            f"{_and([f'`{name}`' for name in QUIET])} are left out: they act wherever others do.",
        ]
    )


def _refusals(fleet: Fleet) -> str:
    """Where stock vLLM ends with an error, and what happens with the plugin there."""
    lines = [
        "## Where vLLM does not start",
        "",
        "| model | layout | AITER | arm | vLLM's error | with the plugin | rules |",
        "|---|---|---|---|---|---|---|",
    ]
    rows: dict[tuple[str, str, str, str], dict[str, dict[Layout, list[str]]]] = {}
    for combination, record in fleet.records.items():
        if combination.machine.arm == "plugin" or record["outcome"] == "ok":
            continue
        ours = _plugin(fleet, combination)
        error = _short(record["error"])
        same = ours["outcome"] != "ok" and _short(ours["error"]) == error
        rules = _code(_owners(ours, AITER_SWITCHES))
        key = (_installed(combination), error, "the same" if same else _cell(ours), rules)
        layout = (combination.machine.gfx, combination.tensor_parallel)
        layouts = rows.setdefault(key, {}).setdefault(combination.model, {})
        layouts.setdefault(layout, []).append(combination.machine.arm)
    for (installed, error, ours_text, rules), found in rows.items():
        arms: dict[str, dict[str, set[Layout]]] = {}
        for model, layouts in found.items():
            for layout, in_arms in layouts.items():
                where = arms.setdefault(" and ".join(in_arms), {})
                where.setdefault(model, set()).add(layout)
        for arm, where in arms.items():
            for names, places in _same(where):
                cells = (_names(names), _layouts(places), installed, arm, error, ours_text, rules)
                lines.append(f"| {' | '.join(cells)} |")
    refused: dict[str, dict[str, set[Layout]]] = {}
    for combination, record in fleet.records.items():
        if combination.machine.arm != "plugin" or record["outcome"] == "ok":
            continue
        if _stock_starts(fleet, combination):
            where = refused.setdefault(f"AITER {_installed(combination)}: {_cell(record)}", {})
            layout = (combination.machine.gfx, combination.tensor_parallel)
            where.setdefault(combination.model, set()).add(layout)
    lines += ["", "Built by stock vLLM, and not started with the plugin:", ""]
    lines += [
        f"* {_names(names)} ({_layouts(places)}), {sentence}"
        for sentence, where in refused.items()
        for names, places in _same(where)
    ] or ["* nothing."]
    return "\n".join(lines)


def _findings(fleet: Fleet) -> str:
    """Where stock vLLM starts on a path that a source calls slower or wrong."""
    lines = [
        "## Where vLLM starts on a path that is called slower, or wrong",
        "",
        "Counted over the combinations with the model; the arm is vLLM as it is, or with "
        "`VLLM_ROCM_USE_AITER=1`.",
        "",
        "| path | source | arm | models | combinations | left with the plugin | mended by |",
        "|---|---|---|---|---|---|---|",
    ]
    for finding in FINDINGS:
        for arm in (arm for arm in rig.ARMS if arm != "plugin"):
            hits = [
                c for c, r in fleet.records.items() if c.machine.arm == arm and finding.found(c, r)
            ]
            if not hits:
                continue
            left = [c for c in hits if finding.found(c, _plugin(fleet, c))]
            mended = [c for c in hits if c not in left]
            rules = sorted(
                {name for c in mended for name in _owners(_plugin(fleet, c), finding.keys)}
            )
            rest = _some({c.model for c in left})
            lines.append(
                f"| {finding.title} | {finding.source} | {arm} | {_some({c.model for c in hits})} "
                f"| {len(hits)} | {f'{len(left)}: {rest}' if left else 'none'} | {_code(rules)} |"
            )
    lines += ["", "What is left, and why:", ""]
    reasons: dict[str, list[str]] = {}
    for (number, model), why in LEFT.items():
        reasons.setdefault(f"{FINDINGS[number].title}: {why}", []).append(model)
    lines += [f"* {', '.join(names)}, {reason}." for reason, names in reasons.items()]
    return "\n".join(lines)


def _table(fleet: Fleet, *, aiter: bool) -> str:
    """Every combination, equal ones in one row."""
    outcomes: dict[Cells, dict[str, set[Layout]]] = {}
    for combination in fleet.records:
        machine = combination.machine
        if machine.arm != "plugin" or machine.aiter != aiter:
            continue
        layout = (machine.gfx, combination.tensor_parallel)
        found = outcomes.setdefault(cells(fleet, combination), {})
        found.setdefault(combination.model, set()).add(layout)
    if not outcomes:
        return ""
    lines = [
        f"## With{'' if aiter else 'out'} AITER installed",
        "",
        "| models | layout | vLLM | vLLM with AITER=1 | with the plugin | rules |",
        "|---|---|---|---|---|---|",
    ]
    for row, found in outcomes.items():
        for names, layouts in _same(found):
            lines.append(f"| {' | '.join((_names(names), _layouts(layouts), *row))} |")
    return "\n".join(lines)


def cells(fleet: Fleet, combination: Combination) -> Cells:
    """What the page states of one combination: both stock arms, ours, and our rules."""
    stock, asked = (
        _cell(fleet.records[_other(combination, arm)]) for arm in rig.ARMS if arm != "plugin"
    )
    record = _plugin(fleet, combination)
    ours = _cell(record)
    third = SAME if ours == stock else AS_ASKED if ours == asked else ours
    return stock, SAME if asked == stock else asked, third, _code(sorted(_acting(record)))


Place = tuple[bool, str, str, int]


def place(combination: Combination) -> Place:
    """Under which key `stated` has a combination."""
    machine = combination.machine
    return machine.aiter, combination.model, machine.gfx, combination.tensor_parallel


def stated(text: str) -> dict[Place, Cells]:
    """What a page says of each combination: its tables, read back."""
    found: dict[Place, Cells] = {}
    aiter: bool | None = None
    for line in text.splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ")
            aiter = {"With AITER installed": True, "Without AITER installed": False}.get(title)
        columns = [column.strip() for column in line.strip("|").split(" | ")]
        if aiter is None or len(columns) != 6 or "TP" not in columns[1]:
            continue
        names, layouts, *row = columns
        for part in layouts.split("; "):
            kinds, _, sizes = part.partition(": TP ")
            for name in names.split(", "):
                for gfx in kinds.split(", "):
                    for size in sizes.split(", "):
                        found[(aiter, name, gfx, int(size))] = (row[0], row[1], row[2], row[3])
    return found


def _sentences(fleet: Fleet) -> str:
    """What the plans warn of and advise."""
    lines = ["## What the plugin says", ""]
    said: dict[tuple[str, str], dict[str, set[Layout]]] = {}
    for combination, record in fleet.records.items():
        plan = record.get("plan") or {}
        for kind in ("refusals", "warnings", "notes"):
            for sentence in plan.get(kind, ()):
                where = said.setdefault((kind, sentence), {})
                layout = (combination.machine.gfx, combination.tensor_parallel)
                where.setdefault(combination.model, set()).add(layout)
    if not said:
        return ""
    for (kind, sentence), found in said.items():
        every = {layout for layouts in found.values() for layout in layouts}
        lines.append(f"* {kind[:-1]} ({_names(found)}; {_layouts(every)}): {sentence}")
    return "\n".join(lines)


def _other(combination: Combination, arm: str) -> Combination:
    machine = combination.machine
    return Combination(
        Machine(machine.gfx, machine.aiter, arm), combination.model, combination.tensor_parallel
    )


def _plugin(fleet: Fleet, combination: Combination) -> Record:
    return fleet.records[_other(combination, "plugin")]


def _stock_starts(fleet: Fleet, combination: Combination) -> bool:
    return fleet.records[_other(combination, "stock")]["outcome"] == "ok"


def _installed(combination: Combination) -> str:
    return "installed" if combination.machine.aiter else "not installed"


def _cell(record: Record) -> str:
    """The outcome in a few words."""
    if record["outcome"] != "ok":
        _, ours, sentence = record["error"].partition(OURS)
        return f"refused: {sentence.partition(' [type=')[0]}" if ours else _bold(record["error"])
    parts = [
        " + ".join(sorted(attention(record))) or "no attention",
        *([" + ".join(record["moe"])] if record["moe"] else []),
        str(record["block_size"]),
    ]
    offload = " +offload" if record["kv_offloading_size"] else ""
    return f"{' · '.join(parts)}{offload}{' AITER' if record['aiter_on'] else ''}"


def _bold(error: str) -> str:
    return f"**{_short(error)}**"


def _short(error: str) -> str:
    """An error's first sentence, as far as a table holds it."""
    kind, _, text = error.partition(": ")
    # pydantic's wrapping of an error whose text is a format and its value.
    text = re.sub(r"Value error, \('(.*)', '(\w+)'\).*", _filled, text)
    text = re.sub(
        r"QuantKey\(.*?GroupShape\(row=(\d+), col=(\d+)\).*", r"of blocks of \1 by \2", text
    )
    for end in (" [type=", ". Reasons", ". weight_key"):
        text = text.partition(end)[0]
    text = text.replace("|", "\\|")
    return f"{kind}: {text if len(text) <= 200 else text[:197] + '...'}"


def _filled(found: re.Match[str]) -> str:
    return found.group(1).replace("%s", found.group(2))


def _acting(record: Record) -> Iterable[str]:
    """The rules that set something."""
    on: dict[str, dict[str, Any]] = (record.get("plan") or {}).get("on", {})
    return [name for name, settings in on.items() if settings and name not in QUIET]


def _owners(record: Record, keys: Iterable[str]) -> list[str]:
    """The rules that set one of these."""
    on: dict[str, dict[str, Any]] = (record.get("plan") or {}).get("on", {})
    return [name for name, settings in on.items() if set(settings) & set(keys)]


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def _same(found: dict[str, set[Layout]]) -> list[tuple[list[str], set[Layout]]]:
    """Models with the same layouts together."""
    groups: dict[frozenset[Layout], list[str]] = {}
    for name, layouts in found.items():
        groups.setdefault(frozenset(layouts), []).append(name)
    return [(names, set(layouts)) for layouts, names in groups.items()]


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _some(names: Iterable[str]) -> str:
    """All of a few names, the number of many."""
    names = sorted(names)
    return ", ".join(names) if len(names) <= FEW else f"{len(names)} models"


def _and(values: Sequence[object]) -> str:
    words = [str(value) for value in values]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _layouts(layouts: set[Layout]) -> str:
    """`gfx942, gfx950; TP 1, 4, 8`, or each kind of GPU with its own sizes."""
    sizes: dict[tuple[int, ...], list[str]] = {}
    for gfx in sorted({gfx for gfx, _ in layouts}):
        own = tuple(sorted(size for name, size in layouts if name == gfx))
        sizes.setdefault(own, []).append(gfx)
    return "; ".join(
        f"{', '.join(kinds)}: TP {', '.join(map(str, own))}" for own, kinds in sizes.items()
    )


def main() -> int:
    """Run the fleet, then write or compare the page. 0, or 1 where the page is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--output", type=Path, default=PAGE)
    arguments = parser.parse_args()
    started = time.perf_counter()
    fleet = rig.run(models.published(), rig.machines())
    text = render(fleet)
    seconds = time.perf_counter() - started
    print(f"{len(fleet.records)} combinations on vLLM {fleet.vllm} in {seconds:.0f} s")
    if arguments.check:
        if not arguments.output.exists() or arguments.output.read_text(encoding="utf-8") != text:
            print(f"stale: {arguments.output}; `make fleet` renews it", file=sys.stderr)
            return 1
        return 0
    arguments.output.write_text(text, encoding="utf-8")
    print(f"written: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
