"""Launch Triton kernels in the emulator: a Triton driver whose device is an emulated AMD GPU.

`Device(arch)` is for a long-lived process, `emulate(arch)` and `launch(...)` for tests and scripts.
Triton and torch are imported only when a kernel is launched. A launch goes through Triton's own
binder, so specialisation (ints equal to 1, divisibility by 16, pointer range), autotuning (the
first configuration wins), heuristics, tuples, descriptors and Gluon work as in Triton, and compiled
kernels are cached on disk by Triton as usual.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from typing import Any

import numpy as np

from .definitions import COMPUTE_UNITS, MAX_LDS, EmuError, Unsupported, u32
from .run import run

# Triton's active driver and the decoded kernels belong to the process: one thread launches at a
# time.
_LOCK = threading.RLock()
MAX_COUNTED_KERNELS = 1024


@dataclasses.dataclass
class KernelCounts:
    """What the launches of one kernel did, added up.

    Bytes and wave instructions are exact, seconds are the emulator's.
    """

    kernel: str
    launches: int = 0
    workgroups: int = 0
    wave_instructions: int = 0
    seconds: float = 0.0
    instructions: dict[str, int] = dataclasses.field(default_factory=dict)
    bytes: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, launch: dict[str, Any]) -> None:
        """Add one launch's counts (the dict that `run` returns)."""
        self.launches += 1
        self.workgroups += launch["workgroups"]
        self.wave_instructions += launch["wave_instrs"]
        self.seconds += launch["seconds"]
        for mine, theirs in (
            (self.instructions, launch["instrs"]),
            (self.bytes, launch["bytes"]),
        ):
            for k, v in theirs.items():
                if v:
                    mine[k] = mine.get(k, 0) + v


def _assembly_text(src, metadata):
    """The text the code object was assembled from, which lies beside it in Triton's cache."""
    from triton.runtime.cache import get_cache_manager

    group = get_cache_manager(metadata.hash).get_group(f"{src.name[:150]}.json") or {}
    for name, path in group.items():
        if name.endswith(".amdgcn"):
            with open(path) as f:
                return f.read()
    raise Unsupported(
        f"the assembly of kernel {metadata.name} is not in Triton's cache "
        "(unset TRITON_STORE_BINARY_ONLY)"
    )


_launchers: collections.OrderedDict = collections.OrderedDict()


def _launcher(src, metadata):
    """The launcher of a kernel; Triton asks again at every launch, as no module is loaded."""
    launcher = _launchers.get(metadata.hash)
    if launcher is None:
        launcher = _launchers[metadata.hash] = _Launcher(src, metadata)
        while len(_launchers) > MAX_COUNTED_KERNELS:
            _launchers.popitem(last=False)
    return launcher


class _Launcher:
    """Takes the place of Triton's HIPLauncher: runs the kernel's AMD code in the emulator."""

    def __init__(self, src, metadata):
        self.metadata = metadata
        self.signature = list(src.signature.values())
        # plain signatures, the usual case, need no recursion at every launch
        self.plain = all(
            isinstance(t, str) and (t[0] in "*iu" or t == "constexpr") for t in self.signature
        )
        self.passed = [i for i, t in enumerate(self.signature) if t != "constexpr"]
        names = list(getattr(getattr(src, "fn", None), "arg_names", ()))
        # tuples and descriptors become several arguments: then the numbers have to do
        self.names = [names[i] for i in self.passed] if self.plain and names else []
        self.text = _assembly_text(src, metadata)
        self.options = {"scratch": getattr(metadata, "global_scratch_size", 0) or 0}
        if getattr(metadata, "launch_cooperative_grid", False):
            self.options["coresident"] = True

    def flat(self, args):
        """The arguments as the kernel takes them, tuples and descriptors spread out."""
        out = []

        def go(t, v):
            if isinstance(t, (tuple, list)):
                for a, b in zip(t, v, strict=True):
                    go(a, b)
            elif t == "constexpr":
                pass
            elif isinstance(t, str) and t.startswith("tensordesc"):
                nan = getattr(v, "padding", "zero") == "nan"
                tf32 = getattr(v, "round_f32_to_tf32", False)
                out.extend([v.base, *v.shape, *v.strides, nan, tf32, *v.shape, *v.strides])
            elif t == "bf16" and not hasattr(v, "data_ptr"):
                out.append(int(np.float32(v).view(u32) >> 16))
            elif t in ("fp16", "fp32", "fp64") and not hasattr(v, "data_ptr"):
                out.append(float(v))
            else:
                out.append(v)

        for t, v in zip(self.signature, args, strict=False):
            go(t, v)
        return out

    def __call__(
        self, gx, gy, gz, stream, function, packed, launch_metadata, enter_hook, exit_hook, *args
    ):
        if gx * gy * gz == 0:
            return
        device = _active_device()
        counts = run(
            self.text,
            self.metadata.name,
            (gx, gy, gz),
            self.metadata.num_warps,
            [args[i] for i in self.passed] if self.plain else self.flat(args),
            device.arch,
            self.metadata.shared,
            mem=device.mem,
            arg_names=self.names,
            **(self.options | device.options),
        )
        counts["shared"] = self.metadata.shared
        device.note(counts)


def _active_device():
    from triton.runtime import driver

    device = driver.active
    if not isinstance(device, Device):
        raise EmuError(
            "a kernel compiled for the emulated device was launched outside of `with device:`"
        )
    return device


class Device:
    """An emulated AMD GPU, a context manager: inside `with device:` Triton launches run here.

    arch: 'gfx942' or 'gfx950'. mem: tensors that kernels may reach through pointers stored in
    memory (the list may be changed between launches). wait_timeout: seconds after which a kernel
    that polls memory for another process raises WaitTimeout. keep_launches: how many of the last
    launches' counts `launches` holds (None: all). options: those of `run`.

    Entering swaps Triton's active driver and takes a lock; leaving puts back whatever was there,
    the state "not yet initialised" of a machine without a GPU included. It is re-entrant. `counts`
    holds the sums by kernel.
    """

    def __init__(
        self, arch="gfx942", mem=(), *, wait_timeout=300.0, keep_launches: int | None = 8, **options
    ):
        if arch not in MAX_LDS:
            raise Unsupported(
                f"architecture {arch!r} is not emulated: use one of {', '.join(MAX_LDS)}"
            )
        self.arch, self.mem = arch, list(mem)
        self.options = {"wait_timeout": wait_timeout, **options}
        self.launches: collections.deque = collections.deque(maxlen=keep_launches)
        self.counts: dict[str, KernelCounts] = {}
        self._before: list = []
        # what Triton asks a driver for
        self.utils, self.launcher_cls = self, _launcher

    def __enter__(self) -> Device:
        from triton.runtime import driver

        _LOCK.acquire()
        self._before.append(driver._active)
        driver._active = self
        return self

    def __exit__(self, *exc_info) -> None:
        from triton.runtime import driver

        driver._active = self._before.pop()
        _LOCK.release()

    def note(self, launch: dict[str, Any]) -> None:
        """Remember the counts of a launch."""
        self.launches.append(launch)
        name = launch["kernel"]
        counts = self.counts.get(name)
        if counts is None:
            if len(self.counts) >= MAX_COUNTED_KERNELS:
                name = "(further kernels)"
            counts = self.counts.setdefault(name, KernelCounts(name))
        counts.add(launch)

    def report(self) -> list[dict[str, Any]]:
        """The counts by kernel as plain dicts, the slowest kernel first."""
        ordered = sorted(self.counts.values(), key=lambda c: -c.seconds)
        return [dataclasses.asdict(c) for c in ordered]

    # ---- Triton's driver protocol --------------------------------------------------------------
    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("hip", self.arch, 64)

    def get_current_device(self):
        return int(
            self.arch[3:], 16
        )  # Triton keeps its kernels by device: one number per architecture

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device=None):
        return 0

    def get_device_properties(self, device=None):
        return {
            "max_shared_mem": MAX_LDS[self.arch],
            "multiprocessor_count": COMPUTE_UNITS[self.arch],
            "warpSize": 64,
            "arch": self.arch,
            "sm_clock_rate": 2100000,
            "mem_clock_rate": 1300000,
            "mem_bus_width": 8192,
            "max_num_regs": 65536,
            "cooperativeLaunch": True,
        }

    def load_binary(self, name, kernel, shared, device):
        # no module: a CompiledKernel that has one unloads it through whatever driver is active when
        # it is freed
        return None, name, 0, 0, 1024

    def unload_module(self, module):
        pass

    def get_active_torch_device(self):
        import torch

        return torch.device("cpu")

    def get_device_interface(self):
        import torch

        return torch.cpu

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_benchmarker(self):
        # autotuning: the first configuration that compiles wins, nothing is timed
        return lambda fn, quantiles=None, **kw: [0.0] * len(quantiles) if quantiles else 0.0

    def get_empty_cache_for_benchmark(self):
        import torch

        return torch.empty(0)

    def clear_cache(self, cache):
        pass

    def allocate_default_profile_scratch(self, *args):
        return None

    @staticmethod
    def is_active():
        return True

    def assemble_tensormap_to_arg(self, *args):
        return args


class emulate:  # noqa: N801 (reads as a function in `with emulate("gfx942")`)
    """with emulate('gfx942') as device: kernel[grid](...); device.launches[-1] has the counts.

    pretend_cuda=True also answers torch.cuda queries and turns 'cuda' allocations into CPU tensors,
    for third-party wrappers. Other options: those of `Device` and `run`.
    """

    def __init__(self, arch="gfx942", mem=(), pretend_cuda=False, **options):
        self.device = Device(arch, mem, **({"keep_launches": None} | options))
        self.pretend_cuda = pretend_cuda
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Device:
        self.stack.enter_context(self.device)
        if self.pretend_cuda:
            from .pretend_cuda import pretend_cuda

            for context in pretend_cuda(self.device):
                self.stack.enter_context(context)
        return self.device

    def __exit__(self, *exc_info) -> None:
        self.stack.close()


RUN_OPTIONS = (
    "stats",
    "batch_waves",
    "poison",
    "max_blocks",
    "lazy_dma",
    "order",
    "coresident",
    "races",
    "wait_timeout",
)


def launch(jit_fn, grid, *args, arch="gfx942", mem=(), **kw):
    """Compile a @triton.jit (or autotuned, or heuristics-wrapped) kernel for arch and run it.

    Returns the counts.

    The kernel is specialised exactly as Triton's launcher would for these arguments.
    """
    options = {k: kw.pop(k) for k in RUN_OPTIONS if k in kw}
    with emulate(arch, mem, **options) as device:
        jit_fn[(grid,) if isinstance(grid, int) else grid](*args, **kw)
        if not device.launches:
            raise EmuError("nothing was launched (empty grid?)")
        return device.launches[-1]
