"""Text and JSON of predictions, sweeps and tables; every line says that it is predicted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.amd_model.assumptions import ASSUMPTIONS, PRODUCT, machine
from benchmarks.amd_model.costs import KINDS, MATRIX, VECTOR
from benchmarks.amd_model.predict import Prediction, predict
from benchmarks.amd_model.sensitivity import Swing
from benchmarks.amd_model.serving import cases

LABEL = "predicted"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to the same width, the label before each line."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        f"{LABEL}  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.2f}" if seconds < 1e-4 else f"{seconds * 1e6:.0f}"


def predictions(found: Iterable[Prediction]) -> list[str]:
    """Kernel x shape: floor, time, share of the floor, and what the first launch looks like."""
    rows = [
        [
            "chip",
            "kernel",
            "model",
            "shape",
            "floor us",
            "by",
            "time us",
            "share",
            "launches us",
            "waves/SIMD",
            "KiB in flight/CU",
            "waits for",
        ]
    ]
    for one in found:
        first = one.launches[0]
        rows.append(
            [
                PRODUCT[one.gfx],
                one.case.kernel,
                one.case.model,
                one.case.shape,
                _microseconds(one.floor_seconds),
                one.floor_by,
                _microseconds(one.seconds),
                f"{one.share_of_floor:.0%}",
                "+".join(_microseconds(launch.seconds) for launch in one.launches),
                f"{first.waves_per_simd:g}",
                f"{first.bytes_in_flight_per_cu / 1024:g}",
                first.waits_most_for,
            ]
        )
    return table(rows)


PAGE_CASES = (
    "paged_attention_decode llama-8b batch8/context8192",
    "paged_attention_decode llama-8b batch1/context8192",
    "paged_attention_decode llama-405b-tp8 batch32/context32768",
    "paged_attention_decode qwen3-235b-tp8 batch32/context8192",
    "paged_attention_decode.gluon llama-8b batch1/context8192",
    "paged_attention_decode.gluon llama-8b batch8/context8192",
    "paged_attention_decode.gluon llama-405b-tp8 batch1/context8192",
    "paged_attention_decode.gluon llama-405b-tp8 batch32/context8192",
    "paged_attention_decode.gluon qwen3-235b-tp8 batch32/context8192",
    "paged_attention_decode.gluon.fp8_cache llama-8b batch32/context8192",
    "mla_decode deepseek-v3-tp8 batch32/context8192",
    "mla_decode.gluon deepseek-v3-tp8 batch32/context8192",
    "mla_decode.gluon.fp8_cache deepseek-v3-tp8 batch32/context8192",
    "paged_attention_prefill llama-8b tokens2048/context8192",
    "gemm_small_batch llama-8b qkv/6144x4096/batch8",
    "gemm_small_batch llama-8b gate_up/28672x4096/batch8",
    "gemm_small_batch llama-405b-tp8 qkv/2304x16384/batch8",
    "gemm_small_batch deepseek-v3-tp8 o/7168x2048/batch32",
    "kv_cache_write llama-8b batch32",
    "all_reduce_one_shot llama-405b-tp8 batch8",
)
"""What docs/amd_model.md has a row of for each chip, in this order."""


def predictions_page() -> str:
    """The table of predictions in Markdown, as docs/amd_model.md has it; compiles kernels."""
    lines = [
        "| kernel, model, shape | chip | floor | predicted | share |",
        "|---|---|---|---|---|",
    ]
    by_chip = {gfx: {case.label: case for case in cases(gfx)} for gfx in PRODUCT}
    for label in PAGE_CASES:
        for gfx, product in PRODUCT.items():
            one = predict(by_chip[gfx][label], machine(gfx))
            floor = f"{_microseconds(one.floor_seconds)} ({one.floor_by})"
            time, share = _microseconds(one.seconds), f"{one.share_of_floor:.0%}"
            lines.append(f"| {label} | {product} | {floor} | {time} | {share} |")
    return "\n".join(lines) + "\n"


def as_record(one: Prediction) -> dict[str, Any]:
    """A prediction as JSON; seconds throughout."""
    return {
        "evidence": LABEL,
        "gfx": one.gfx,
        "kernel": one.case.kernel,
        "model": one.case.model,
        "shape": one.case.shape,
        "floor_seconds": one.floor_seconds,
        "floor_by": one.floor_by,
        "seconds": one.seconds,
        "share_of_floor": one.share_of_floor,
        "bytes": one.case.bytes,
        "flops": one.case.flops,
        "link_bytes": one.case.link_bytes,
        "launches": [
            {
                "variant": launch.variant.name,
                "workgroups": launch.workgroups,
                "trips": launch.trips,
                "seconds": timed.seconds,
                "waves_per_simd": timed.waves_per_simd,
                "bytes_in_flight_per_cu": timed.bytes_in_flight_per_cu,
                "clocks_per_trip": timed.clocks_per_trip,
                "waits_clocks": timed.waits,
            }
            for launch, timed in zip(one.case.launches, one.launches, strict=True)
        ],
    }


def swings(one: Prediction, found: Sequence[Swing]) -> list[str]:
    """The sweep of one case; what moves the prediction by less than one per cent is left out."""
    rows = [["assumption", "low", "time there", "high", "time there"]]
    for swing in found:
        if swing.size < 1.01:
            continue
        rows.append(
            [
                swing.assumption,
                f"x{swing.low_factor:g}",
                f"x{swing.at_low:.2f}",
                f"x{swing.high_factor:g}",
                f"x{swing.at_high:.2f}",
            ]
        )
    title = f"{LABEL}  {PRODUCT[one.gfx]} {one.case.label}: {_microseconds(one.seconds)} us"
    return [title, *table(rows)]


def _value(number: float) -> str:
    return f"{number:.4g}" if abs(number) < 1e6 else f"{number:.4e}".replace("e+", "e")


def _code(pattern: str) -> str:
    """A pattern as code within a Markdown table."""
    return "`" + pattern.replace("|", "\\|") + "`"


def assumptions_page() -> str:
    """The tables of assumptions and costs in Markdown, as docs/amd_model.md has them."""
    lines = [
        "| assumption | unit | MI300X | MI355X | sweep | status | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ASSUMPTIONS:
        swept = "-" if row.low == row.high == 1 else f"×{row.low:g} to ×{row.high:g}"
        values = " | ".join(_value(row.values[gfx]) for gfx in PRODUCT)
        lines.append(
            f"| {row.name} | {row.unit} | {values} | {swept} | {row.status} | {row.source} |"
        )
    lines += ["", "| matrix instructions | passes of 4 clocks | source |", "|---|---|---|"]
    lines += [f"| {_code(row.pattern)} | {row.passes} | {row.source} |" for row in MATRIX]
    lines += ["", "| vector instructions | clocks | source |", "|---|---|---|"]
    lines += [f"| {_code(row.pattern)} | {row.clocks} | {row.source} |" for row in VECTOR]
    lines += ["", "| instructions | kind | source |", "|---|---|---|"]
    lines += [f"| {_code(row.pattern)} | {row.kind} | {row.source} |" for row in KINDS]
    return "\n".join(lines) + "\n"
