"""Measures decode attention on the GPU of this machine: ours, vLLM's Triton kernels and the floor.

    python -m benchmarks.attention [--model NAME] [--batch N] [--context N] [--rounds N] [--out DIR]
    python -m benchmarks.attention --predict gfx942|gfx950      (no GPU: the cost model's table)

Each cell passes a correctness gate before it is timed. The arms then take turns, each call alone on
cold caches and replayed from a captured graph; the floor is the cell's keys and values over the
bandwidth of a copy in the same run. On an NVIDIA GPU, a stand-in, every line says so. Decode only,
bfloat16; cells that do not fit the GPU's memory are named and left out.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks import attention_arms as arms
from benchmarks.attention_arms import BATCHES, CONTEXTS, MODELS, OURS, Cell
from vllm_amdopt import run_record
from vllm_amdopt.run_record import Conclusion, RunRecord, Table

RESULTS = Path(__file__).parent / "results"
ROUNDS = 20
NO_GPU = (
    "attention: there is no GPU here to measure on; run it on an AMD Instinct or NVIDIA GPU, or "
    "print the cost model's table with --predict gfx942."
)


class Clock(Protocol):
    """What times a call. `ready` makes something that can be timed of it, once."""

    name: str
    stand_in: bool

    def ready(self, call: Callable[[], object]) -> Callable[[], object]: ...

    def seconds(self, call: Callable[[], object]) -> float: ...


class GpuClock:
    """Events of the GPU around one replay of a captured call, after the caches were overwritten."""

    def __init__(self, device: torch.device) -> None:
        self.name = torch.cuda.get_device_name(device)
        self.stand_in = torch.version.hip is None
        self._flush = torch.empty(512 << 20, dtype=torch.uint8, device=device)

    def ready(self, call: Callable[[], object]) -> Callable[[], object]:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def seconds(self, call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()  # long enough for the host to have queued what follows
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000


def copy_bandwidth(clock: Clock, device: torch.device, size: int = 1 << 30) -> float:
    """Bytes a second of a copy of `size` bytes, read and written, the median of ten."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = clock.ready(lambda: target.copy_(source))
    return 2 * size / statistics.median(clock.seconds(copy) for _ in range(10))


def measure(
    cell: Cell, clock: Clock, device: torch.device, dtype: torch.dtype, rounds: int
) -> dict[str, Any]:
    """{"times": arm -> seconds of each round, "absent": arm -> why}; SystemExit if ours fails."""
    prepared = arms.prepare(cell, device, dtype)
    absent = dict(prepared.absent)
    ready: dict[str, Callable[[], object]] = {}
    for arm in prepared.arms:
        arm.out.fill_(float("nan"))
        arm.call()
        wrong = prepared.wrong(arm)
        if wrong is not None and arm.name == OURS:
            raise SystemExit(f"attention: {cell.name}: our kernel fails its gate: {wrong}")
        if wrong is not None:
            absent[arm.name] = f"wrong, so not timed: {wrong}"
            continue
        ready[arm.name] = clock.ready(arm.call)
    names = list(ready)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(clock.seconds(ready[name]))
    return {"times": times, "absent": absent}


def spread(times: Sequence[float]) -> str:
    """Median and the middle half, in µs."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return f"{middle * 1e6:.1f} ({low * 1e6:.1f} to {high * 1e6:.1f})"


def rows_of(cell: Cell, found: dict[str, Any], floor: float) -> list[str]:
    """One line of the table: cell, floor, ours with its share, the other arms with their ratios."""
    times = found["times"]
    ours = statistics.median(times[OURS])
    line = [cell.name, f"{floor * 1e6:.1f}", spread(times[OURS]), f"{floor / ours:.0%}"]
    for name in ("vllm-triton", "flash-attention"):
        if name in times:
            line.append(f"{spread(times[name])} x{statistics.median(times[name]) / ours:.2f}")
        else:
            line.append("-")
    return line


HEAD = ("cell", "floor us", "ours us", "share", "vLLM Triton us", "FlashAttention us")


def summary(found: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """(outcome, sentence) about ours beside vLLM's Triton: geometric mean and the worst cell."""
    ratios = {
        name: statistics.median(cell["times"]["vllm-triton"])
        / statistics.median(cell["times"][OURS])
        for name, cell in found.items()
        if "vllm-triton" in cell["times"]
    }
    if not ratios:
        return "inconclusive", "No cell has vLLM's Triton kernel beside ours."
    mean = math.exp(statistics.fmean(map(math.log, ratios.values())))
    worst = min(ratios, key=lambda name: ratios[name])
    sentence = (
        f"{len(ratios)} cells: {mean:.2f} times as fast as vLLM's Triton kernels in the geometric "
        f"mean, {ratios[worst]:.2f} times in the worst cell, {worst}."
    )
    return ("passed" if ratios[worst] >= 1.0 else "failed"), sentence


def record_of(
    clock: Clock, bandwidth: float, found: dict[str, dict[str, Any]], table: list[list[str]]
) -> RunRecord:
    """The run record: every time of every round, as kernels' rows."""
    label = "stand-in, not AMD hardware" if clock.stand_in else "AMD"
    outcome, sentence = summary(found)
    names = ("vllm-triton", OURS, "flash-attention")
    rows = tuple(
        run_record.Row(
            block=i,
            arm=name,
            level={"cell": cell},
            status="ok",
            order=">".join(one["times"]),
            position=list(one["times"]).index(name),
            metrics={"seconds": seconds},
        )
        for cell, one in found.items()
        for name in one["times"]
        for i, seconds in enumerate(one["times"][name])
    )
    return run_record.new_record(
        "kernels",
        [run_record.Arm(name) for name in names],
        rows=rows,
        title=f"decode attention on {clock.name} ({label})",
        machine={"gpus": [clock.name], "copy_bytes_per_second": bandwidth},
        software=_software(),
        commands=("python -m benchmarks.attention",),
        notes=tuple(
            f"{cell}: {name}: {why}"
            for cell, one in found.items()
            for name, why in one["absent"].items()
        ),
        tables=(Table(f"Decode attention ({label})", HEAD, tuple(map(tuple, table))),),
        conclusion=Conclusion(outcome, sentence),
    )


def _software() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"cuda": str(torch.version.cuda), "rocm": str(torch.version.hip)}
    for name in ("torch", "triton", "vllm", "vllm-amdopt"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def run(
    chosen: Sequence[Cell],
    clock: Clock,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.bfloat16,
    rounds: int = ROUNDS,
    memory: float = math.inf,
    copied: int = 1 << 30,
) -> RunRecord:
    """Measure the cells and print them as they come."""
    bandwidth = copy_bandwidth(clock, device, copied)
    label = "stand-in, not AMD hardware" if clock.stand_in else "measured"
    print(f"{clock.name} ({label}): a copy moves {bandwidth / 1e12:.2f} TB/s")
    found: dict[str, dict[str, Any]] = {}
    table = []
    for cell in chosen:
        needed = cell.cache_bytes(dtype)
        if needed > memory:
            print(f"{cell.name}: left out, {needed / 2**30:.0f} GiB do not fit")
            continue
        found[cell.name] = measure(cell, clock, device, dtype, rounds)
        table.append(rows_of(cell, found[cell.name], needed / bandwidth))
        print(f"{label}  " + "  ".join(table[-1]), flush=True)
    record = record_of(clock, bandwidth, found, table)
    assert record.conclusion is not None
    print(record.conclusion.sentence)
    return record


def predictions(chosen: Sequence[Cell], gfx: str) -> list[str]:
    """The cost model's table of the same cells by what runs there first, without a GPU."""
    from benchmarks.amd_model import report, serving_cdna
    from benchmarks.amd_model.assumptions import machine
    from benchmarks.amd_model.predict import predict
    from vllm_amdopt.hardware import ARCHITECTURES

    units = ARCHITECTURES[gfx].compute_units
    assert units is not None
    found = []
    for cell in chosen:
        make = serving_cdna.latent_decode if cell.model.latent else serving_cdna.decode
        found.append(predict(make(cell.model, cell.batch, cell.context, units), machine(gfx)))
    return list(report.predictions(found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention",
        description="Measure decode attention on this machine's GPU, or predict it without one.",
        allow_abbrev=False,
    )
    names = [model.name for model in MODELS]
    parser.add_argument("--model", action="append", choices=names, default=[], help="only this one")
    parser.add_argument("--batch", action="append", type=int, default=[], help="only this one")
    parser.add_argument("--context", action="append", type=int, default=[], help="only this one")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="timings of each arm")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the run record goes")
    parser.add_argument("--predict", choices=("gfx942", "gfx950"), help="the model's table instead")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where ours is slower in a cell; 2 where there is nothing to measure on."""
    options = _parser().parse_args(arguments)
    if min([*options.batch, *options.context, options.rounds]) < 1:
        print("attention: --batch, --context and --rounds are at least 1.", file=sys.stderr)
        return 2
    chosen = list(
        arms.cells(
            tuple(options.model),
            tuple(options.batch) or BATCHES,
            tuple(options.context) or CONTEXTS,
        )
    )
    if options.predict:
        print("\n".join(predictions(chosen, options.predict)))
        return 0
    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    memory = torch.cuda.get_device_properties(device).total_memory * 0.8
    record = run(chosen, GpuClock(device), device, rounds=options.rounds, memory=memory)
    stamp = record.created.replace(":", "").replace("+0000", "Z")
    path = options.out / f"attention-{stamp}{run_record.SUFFIX}"
    run_record.save(record, path)
    print(f"written: {path}")
    assert record.conclusion is not None
    return 1 if record.conclusion.outcome == "failed" else 0


if __name__ == "__main__":
    sys.exit(main())
