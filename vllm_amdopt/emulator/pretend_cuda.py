"""Answers for wrappers that insist on torch.cuda; used only by emulate(pretend_cuda=True)."""

from __future__ import annotations

from .definitions import COMPUTE_UNITS, MAX_LDS


def pretend_cuda(drv):
    """Context managers in which torch.cuda answers as the AMD device would, and 'cuda' tensors are
    CPU tensors."""
    import types
    from unittest import mock

    import torch
    from torch.overrides import TorchFunctionMode

    p = types.SimpleNamespace(
        name="AMD Instinct " + {"gfx942": "MI300X", "gfx950": "MI355X"}.get(drv.arch, drv.arch),
        multi_processor_count=COMPUTE_UNITS.get(drv.arch, 304),
        gcnArchName=drv.arch + ":sramecc+:xnack-",
        warp_size=64,
        major=9,
        minor=4 if drv.arch == "gfx942" else 5,
        total_memory=192 << 30,
        max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=MAX_LDS.get(drv.arch, 65536),
        L2_cache_size=4 << 20,
    )

    def on_cpu(device):
        """'cuda' and device numbers -> 'cpu'; anything else stays"""
        if isinstance(device, bool):
            return device
        is_cuda = isinstance(device, (str, torch.device)) and str(device).startswith("cuda")
        return "cpu" if is_cuda or isinstance(device, int) else device

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if func is torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
                return True
            if kwargs.get("device") is not None:
                kwargs["device"] = on_cpu(kwargs["device"])
            if func is torch.Tensor.cuda:
                return args[0]
            if func is torch.Tensor.to:
                args = (
                    args[0],
                    *[on_cpu(a) if isinstance(a, (str, torch.device)) else a for a in args[1:]],
                )
            return func(*args, **kwargs)

    class Null:
        def __init__(self, *a, **k):
            self.cuda_stream = 0

        def __enter__(self):
            return self

        def __exit__(self, *a):
            return False

        def __getattr__(self, n):
            return lambda *a, **k: None

    f = {
        "get_device_properties": lambda *a: p,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_name": lambda *a: p.name,
        "get_device_capability": lambda *a: (p.major, p.minor),
        "synchronize": lambda *a: None,
        "device": Null,
        "stream": Null,
        "Stream": Null,
        "Event": Null,
        "current_stream": lambda *a: Null(),
        "is_available": lambda: True,
        "set_device": lambda *a: None,
        "empty_cache": lambda: None,
        "is_current_stream_capturing": lambda: False,
    }
    return [
        Mode(),
        *[mock.patch.object(torch.cuda, k, v) for k, v in f.items()],
        mock.patch.object(torch.version, "hip", "7.0"),
    ]
