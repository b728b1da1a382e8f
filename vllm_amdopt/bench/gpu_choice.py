"""Which GPUs a run takes, locked: those that were named, or free ones; it starts nothing there."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vllm_amdopt.bench.gpu_lock import WHOLE_MACHINE, BusyError, Locks
from vllm_amdopt.bench.gpu_use import GpuUse, Machine, foreign_use, gpus_in_use
from vllm_amdopt.bench.plan import PlanError

VISIBLE = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Choice:
    """The GPUs of a run and the variables that keep a server on them."""

    indices: tuple[int, ...]
    identities: tuple[str, ...]
    environment: Mapping[str, str]


def wanted_count(serve_arguments: Sequence[str]) -> int:
    """GPUs that a server with these arguments takes."""
    names = {
        "--tensor-parallel-size": "tensor",
        "-tp": "tensor",
        "--pipeline-parallel-size": "pipeline",
        "-pp": "pipeline",
        "--data-parallel-size": "data",
        "-dp": "data",
    }
    sizes: dict[str, int] = {}
    for word, following in itertools.pairwise((*serve_arguments, "")):
        name, equals, value = word.replace("_", "-").partition("=")
        if name in names:
            text = value if equals else following
            if re.fullmatch(r"[1-9]\d*", text):
                sizes[names[name]] = int(text)
    count = 1
    for size in sizes.values():
        count *= size
    return count


def choose_gpus(
    text: str,
    count: int,
    machine: Machine,
    locks: Locks,
    environment: Mapping[str, str],
    *,
    wait_seconds: float = 0.0,
    on_wait: Callable[[str], None] = lambda who: None,
    purpose: str = "",
) -> Choice:
    """`auto`, `auto:4`, `0,1` or `none`, locked. BusyError after `wait_seconds` without.

    Without a GPU the whole machine is the lock: two runs would share its cores.
    """
    found = gpus_in_use(machine)
    named = _named(text, count, found, environment)
    if named == ():
        locks.acquire([WHOLE_MACHINE], wait_seconds, on_wait, purpose)
        return Choice((), (), {})
    deadline = time.monotonic() + wait_seconds
    while True:
        chosen, busy = _take(found, named, count, locks, purpose)
        if chosen:
            indices = tuple(gpu.index for gpu in chosen)
            listed = ",".join(map(str, indices))
            variable = (
                "CUDA_VISIBLE_DEVICES" if chosen[0].identity.startswith("GPU-") else VISIBLE[0]
            )
            kept = text.startswith("auto") and named is not None  # the user's own variable says it
            return Choice(
                indices, tuple(gpu.identity for gpu in chosen), {} if kept else {variable: listed}
            )
        if time.monotonic() >= deadline:
            raise BusyError(f"{busy}; wait with --wait-gpus 2h, or choose others with --gpus")
        on_wait(busy)
        time.sleep(min(5.0, max(0.05, deadline - time.monotonic())))
        found = gpus_in_use(machine)


def _named(
    text: str, count: int, found: Sequence[GpuUse], environment: Mapping[str, str]
) -> tuple[int, ...] | None:
    """The indices that were named, () for none at all, None for any."""
    if text == "none" or (text.startswith("auto") and not found):
        return ()
    here = [gpu.index for gpu in found]
    if re.fullmatch(r"\d+(,\d+)*", text):
        named = tuple(dict.fromkeys(int(word) for word in text.split(",")))
        if environment.get("ROCR_VISIBLE_DEVICES"):
            raise PlanError(
                "--gpus counts all GPUs of the machine, and ROCR_VISIBLE_DEVICES hides some of "
                "them from vLLM: unset it, or leave --gpus at auto"
            )
        missing = [index for index in named if index not in here]
        if missing:
            raise PlanError(
                f"--gpus names GPU {missing[0]}, and this machine has "
                f"{', '.join(map(str, here)) or 'none'}"
            )
        return named
    if not re.fullmatch(r"auto(:[1-9]\d*)?", text):
        raise PlanError(f"--gpus {text!r}: write auto, auto:4, 0,1 or none")
    for name in VISIBLE:
        if re.fullmatch(r"\d+(,\d+)*", environment.get(name, "")):
            visible = [int(word) for word in environment[name].split(",")]
            return tuple(index for index in visible if index in here)[:count] or ()
    if count > len(found):
        raise PlanError(f"{count} GPUs are needed and this machine has {len(found)}")
    return None


def _take(
    found: Sequence[GpuUse],
    named: tuple[int, ...] | None,
    count: int,
    locks: Locks,
    purpose: str,
) -> tuple[list[GpuUse], str]:
    """Lock GPUs without anybody on them: the ones named, or `count` of all. [] and why if not."""
    candidates = [gpu for gpu in found if named is None or gpu.index in named]
    needed = count if named is None else len(candidates)
    taken: list[GpuUse] = []
    busy = ""
    for gpu in candidates:
        foreign = foreign_use([gpu])
        if foreign:
            busy = foreign[0]
        elif (held := locks.lock(gpu.identity, purpose)) is not None:
            busy = held
        else:
            taken.append(gpu)
            if len(taken) == needed:
                return taken, ""
    locks.release()
    free = len(taken)
    return [], f"only {free} of {needed} GPUs are free: {busy}" if needed > 1 else busy
