"""AMD GPUs as facts: architectures, products, PCI ids; `Hardware`, the machine as policy sees it.

Not a place for decisions, and reads no machine: `detection` does. Standard library only.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

GIB = 1024**3
MIB = 1024**2
KIB = 1024
GB_PER_SECOND = 10**9
TB_PER_SECOND = 10**12

Fp8Flavour = Literal["fnuz", "ocp", "none"]

_SPECIFICATIONS = "https://rocm.docs.amd.com/en/latest/reference/gpu-specs.html"
_MI300 = "https://rocm.docs.amd.com/en/latest/conceptual/gpu-arch/mi300.html"
_MI250 = "https://rocm.docs.amd.com/en/latest/conceptual/gpu-arch/mi250.html"
_MI350_HOT_CHIPS = (
    "AMD at Hot Chips 2025: https://wccftech.com/amd-instinct-mi350-gpuai-hardware-powerhouse-3nm-"
    "3d-chiplet-cdna-4-185-billion-transistors-1400w-tbp-over-4000b-llm-support/"
)
_MI350_PER_CLOCK = (
    "CUs × FLOP per clock and CU (FP8: 8192, AMD at ISSCC 2026, "
    "https://www.memesita.com/amd-mi355x-doubled-ai-performance-with-cdna-4-architecture/; "
    f"bf16: half of it) × peak clock ({_MI350_HOT_CHIPS})"
)
_MI325X_SHEET = "AMD's MI325X figures as given by https://awesomeagents.ai/hardware/amd-mi325x"
_MI300A_SHEET = (
    "AMD's MI300A data sheet as given by https://vengineer.hatenablog.com/entry/2023/12/11/080000"
)
_MI325X_POWER = "https://yobitel.com/knowledge-base/amd-mi325x"
_MI300_LINK = "https://www.wheelersnetwork.com/2024/01/ (128 GB/s both ways, 16 lanes of 32 Gbit/s)"
_MI350_LINK = (
    "https://www.techaiapp.com/tech-ai-app/chips/amd-instinct-mi350x-series-ai-gpu-silicon-detailed/"
    " (153.6 GB/s both ways)"
)


@dataclass(frozen=True)
class Product:
    """One GPU as the driver shows it in its default mode; for MI250 and MI250X that is one die.

    Sizes in bytes, rates in bytes or FLOP a second, peaks dense (no sparsity) and theoretical.
    `link_bytes_per_second`: one Infinity Fabric link in one direction; `gpus_per_node`: in the
    usual fully connected node. None: no source was found. `sources` has an entry for each number.
    """

    name: str
    gfx: str
    fp8_flavour: Fp8Flavour
    compute_units: int | None = None
    xcds: int | None = None
    lds_bytes_per_cu: int | None = None
    l2_bytes: int | None = None
    infinity_cache_bytes: int | None = None
    memory_bytes: int | None = None
    memory_bytes_per_second: int | None = None
    bf16_flops: int | None = None
    fp8_flops: int | None = None
    link_bytes_per_second: int | None = None
    gpus_per_node: int | None = None
    board_watts: int | None = None
    sources: Mapping[str, str] | None = None

    @property
    def brand(self) -> str:
        """The name with the brand that AMD sells it under."""
        return f"AMD Instinct {self.name}" if self.name.startswith("MI") else f"AMD {self.name}"


def _flops(compute_units: int, per_clock: int, megahertz: int) -> int:
    """Peak FLOP a second of all compute units together."""
    return compute_units * per_clock * megahertz * 10**6


def _sources(others: Mapping[str, str]) -> Mapping[str, str]:
    """The ROCm table for what it holds, and `others` for the rest."""
    table = (
        "compute_units",
        "xcds",
        "lds_bytes_per_cu",
        "l2_bytes",
        "infinity_cache_bytes",
        "memory_bytes",
    )
    return {**dict.fromkeys(table, _SPECIFICATIONS), **others}


def _cdna2(name: str, compute_units: int, source: str) -> Product:
    return Product(
        name=name,
        gfx="gfx90a",
        fp8_flavour="none",
        compute_units=compute_units,
        xcds=1,
        lds_bytes_per_cu=64 * KIB,
        l2_bytes=8 * MIB,
        memory_bytes=64 * GIB,
        memory_bytes_per_second=1600 * GB_PER_SECOND,
        bf16_flops=_flops(compute_units, 1024, 1700),
        link_bytes_per_second=50 * GB_PER_SECOND,
        sources=_sources(
            {
                "memory_bytes_per_second": source,
                "bf16_flops": f"CUs × 1024 × 1.7 GHz, {source}",
                "link_bytes_per_second": source,
            }
        ),
    )


def _cdna3(
    name: str, xcds: int, memory: int, bandwidth: int, others: Mapping[str, str], **more: int
) -> Product:
    """38 active CUs and 4 MiB of L2 in each XCD, 2.1 GHz."""
    return Product(
        name=name,
        gfx="gfx942",
        fp8_flavour="fnuz",
        compute_units=38 * xcds,
        xcds=xcds,
        lds_bytes_per_cu=64 * KIB,
        l2_bytes=4 * MIB * xcds,
        infinity_cache_bytes=256 * MIB,
        memory_bytes=memory,
        memory_bytes_per_second=bandwidth,
        sources=_sources(others),
        **more,
    )


def _cdna4(name: str, megahertz: int, watts: int) -> Product:
    return Product(
        name=name,
        gfx="gfx950",
        fp8_flavour="ocp",
        compute_units=256,
        xcds=8,
        lds_bytes_per_cu=160 * KIB,
        l2_bytes=32 * MIB,
        infinity_cache_bytes=256 * MIB,
        memory_bytes=288 * GIB,
        memory_bytes_per_second=8 * TB_PER_SECOND,
        bf16_flops=_flops(256, 4096, megahertz),
        fp8_flops=_flops(256, 8192, megahertz),
        link_bytes_per_second=76_800_000_000,
        gpus_per_node=8,
        board_watts=watts,
        sources=_sources(
            {
                "memory_bytes_per_second": f"{_MI350_HOT_CHIPS}; MI355X data sheet",
                "bf16_flops": _MI350_PER_CLOCK,
                "fp8_flops": _MI350_PER_CLOCK,
                "link_bytes_per_second": _MI350_LINK,
                "gpus_per_node": _MI350_LINK,
                "board_watts": _MI350_HOT_CHIPS,
            }
        ),
    )


def _radeon(name: str, gfx: str, compute_units: int, memory: int, l2: int, cache: int) -> Product:
    """128 KiB of LDS for two CUs (a work-group processor)."""
    return Product(
        name=name,
        gfx=gfx,
        fp8_flavour="ocp" if gfx.startswith("gfx12") else "none",
        compute_units=compute_units,
        lds_bytes_per_cu=64 * KIB,
        l2_bytes=l2 * MIB,
        infinity_cache_bytes=cache * MIB,
        memory_bytes=memory * GIB,
        sources=_sources({}),
    )


PRODUCTS: tuple[Product, ...] = (
    _cdna3(
        "MI300X",
        8,
        192 * GIB,
        5300 * GB_PER_SECOND,
        {
            "memory_bytes_per_second": _MI300,
            "bf16_flops": f"304 CUs × 2048 × 2.1 GHz; {_MI300} says 1307.4 TFLOPS",
            "fp8_flops": f"304 CUs × 4096 × 2.1 GHz; {_MI300} says 2614.9 TFLOPS",
            "link_bytes_per_second": _MI300_LINK,
            "gpus_per_node": _MI300,
            "board_watts": _MI325X_POWER,
        },
        bf16_flops=_flops(304, 2048, 2100),
        fp8_flops=_flops(304, 4096, 2100),
        link_bytes_per_second=64 * GB_PER_SECOND,
        gpus_per_node=8,
        board_watts=750,
    ),
    _cdna3(
        "MI325X",
        8,
        256 * GIB,
        6 * TB_PER_SECOND,
        {
            "memory_bytes_per_second": _MI325X_SHEET,
            "bf16_flops": f"304 CUs × 2048 × 2.1 GHz; {_MI325X_SHEET}: 1307.4 TFLOPS",
            "fp8_flops": f"304 CUs × 4096 × 2.1 GHz; {_MI325X_SHEET}: 2614.9 TFLOPS",
            "gpus_per_node": "https://wiaix.com/amd-instincttm-mi325x-accelerators",
            "board_watts": _MI325X_POWER,
        },
        bf16_flops=_flops(304, 2048, 2100),
        fp8_flops=_flops(304, 4096, 2100),
        gpus_per_node=8,
        board_watts=1000,
    ),
    _cdna3(
        "MI300A",
        6,
        128 * GIB,
        5300 * GB_PER_SECOND,
        {
            "memory_bytes_per_second": f"{_MI300} (MI300 series, 8 stacks of HBM3)",
            "bf16_flops": f"228 CUs × 2048 × 2.1 GHz; {_MI300A_SHEET}: 980.6 TFLOPS",
            "fp8_flops": f"228 CUs × 4096 × 2.1 GHz, as {_MI300} counts for the MI300X",
            "gpus_per_node": _MI300A_SHEET,
        },
        bf16_flops=_flops(228, 2048, 2100),
        fp8_flops=_flops(228, 4096, 2100),
        gpus_per_node=4,
    ),
    Product(
        name="MI308X",
        gfx="gfx942",
        fp8_flavour="fnuz",
        compute_units=80,
        lds_bytes_per_cu=64 * KIB,
        memory_bytes=192 * GIB,
        gpus_per_node=8,
        sources={
            "compute_units": "cu_num of its rows in ROCm/aiter's aiter/configs/*.csv",
            "lds_bytes_per_cu": f"{_SPECIFICATIONS} (gfx942)",
            "memory_bytes": "https://mingxinstorage.xyz/evidence (8 × MI308X, 192 GB each)",
            "gpus_per_node": "https://mingxinstorage.xyz/evidence (8 × MI308X, 192 GB each)",
        },
    ),
    _cdna4("MI355X", 2400, 1400),
    _cdna4("MI350X", 2200, 1000),
    _cdna2("MI250X", 110, f"{_MI250}, per die, and the MI250X data sheet"),
    _cdna2("MI250", 104, f"{_MI250}, per die"),
    _cdna2("MI210", 104, f"{_MI250}: the MI210 is one such die"),
    _radeon("Radeon RX 7900 XTX", "gfx1100", 96, 24, 6, 96),
    _radeon("Radeon PRO W7900", "gfx1100", 96, 48, 6, 96),
    _radeon("Radeon RX 9070 XT", "gfx1201", 64, 16, 8, 64),
    _radeon("Radeon AI PRO R9700", "gfx1201", 64, 32, 8, 64),
)
"""Every product that somebody may ask for; the first of each gfx stands for that gfx."""

PCI_VENDOR_AMD = 0x1002

PRODUCT_OF_PCI_DEVICE: Mapping[int, str] = {
    0x740F: "MI210",
    0x7408: "MI250X",
    0x74A0: "MI300A",
    0x74A1: "MI300X",
    0x74A2: "MI308X",
    0x74A5: "MI325X",
    0x74A8: "MI308X",  # HF
    0x74A9: "MI300X",  # HF
    0x74B5: "MI300X",  # virtual function
    0x74B6: "MI308X",
    0x74B9: "MI325X",  # virtual function
    0x74BC: "MI308X",  # HF, virtual function
    0x74BD: "MI300X",  # HF
    0x75A0: "MI350X",
    0x75A3: "MI355X",
    0x75B0: "MI350X",  # virtual function
    0x75B3: "MI355X",  # virtual function
    0x744C: "Radeon RX 7900 XTX",
    0x7550: "Radeon RX 9070 XT",
    0x7551: "Radeon AI PRO R9700",
}
"""PCI device id -> product. Sources: libdrm's data/amdgpu.ids; 74B9 and 74BC from ROCm's
k8s-device-plugin, 74B9 and the Radeons also from vLLM 0.32's platforms/rocm.py. Ids that several
products share (740C: MI250 and MI250X) are left out."""


@dataclass(frozen=True)
class Architecture:
    """One gfx target. Numbers are those of the first product named; `None` where they vary."""

    gfx: str
    products: tuple[str, ...]
    compute_units: int | None
    xcds: int | None
    lds_bytes_per_cu: int
    hbm_bytes: int | None
    hbm_bytes_per_second: int | None
    fp8_flavour: Fp8Flavour
    instinct: bool
    source: str


def _instinct(gfx: str) -> Architecture:
    members = [product for product in PRODUCTS if product.gfx == gfx]
    first = members[0]
    two_dies = " (one of its two dies)" if first.name == "MI250X" else ""
    return Architecture(
        gfx=gfx,
        products=(first.name + two_dies, *(product.name for product in members[1:])),
        compute_units=first.compute_units,
        xcds=first.xcds,
        lds_bytes_per_cu=first.lds_bytes_per_cu or 64 * KIB,
        hbm_bytes=first.memory_bytes,
        hbm_bytes_per_second=first.memory_bytes_per_second,
        fp8_flavour=first.fp8_flavour,
        instinct=True,
        source=_SPECIFICATIONS,
    )


def _rdna(gfx: str, products: str, fp8_flavour: Fp8Flavour) -> Architecture:
    return Architecture(
        gfx=gfx,
        products=(products,),
        compute_units=None,
        xcds=None,
        lds_bytes_per_cu=64 * KIB,
        hbm_bytes=None,
        hbm_bytes_per_second=None,
        fp8_flavour=fp8_flavour,
        instinct=False,
        source=_SPECIFICATIONS,
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    "gfx90a": _instinct("gfx90a"),
    "gfx942": _instinct("gfx942"),
    "gfx950": _instinct("gfx950"),
    "gfx11": _rdna("gfx11", "Radeon RX 7000, Radeon PRO W7000, Ryzen AI (RDNA3)", "none"),
    "gfx12": _rdna("gfx12", "Radeon RX 9000, Radeon AI PRO R9700 (RDNA4)", "ocp"),
}
"""By gfx name; `gfx11` and `gfx12` stand for their whole families (see `architecture`)."""

CPU_ENGINES: tuple[str, ...] = ("gfx942", "gfx950", "interpreter", "reference")
"""What may run our kernels on a CPU: emulated machine code, Triton's interpreter, plain PyTorch."""


def architecture(gfx: str | None) -> Architecture | None:
    """The facts of `gfx` ("gfx942", "gfx1201", ...), or None where the table has none."""
    if gfx is None:
        return None
    if gfx in ARCHITECTURES:
        return ARCHITECTURES[gfx]
    if re.fullmatch(r"gfx1[12][0-9a-f]{2}", gfx):
        return ARCHITECTURES[gfx[:5]]
    return None


_SUFFIXES = ("", "oam", "o", "hf", "vf", "hfvf")
"""What amdsmi and libdrm append to a product's name for its form or a virtual function of it."""


def product(name: str | None) -> Product | None:
    """The product of that name, in any case and with or without the brand; None if there is none.

    "MI300X", "mi325x", "AMD Instinct MI355X", "AMD_Instinct_MI300X_OAM", "rx 7900 xtx"; a gfx
    name means the first product of that gfx.
    """
    wanted = _key(name or "")
    for candidate in PRODUCTS:
        own = _key(candidate.name)
        if wanted == candidate.gfx or wanted in {own + suffix for suffix in _SUFFIXES}:
            return candidate
    return None


def unknown_product(name: str) -> str:
    """One sentence for a name that `product` does not know, with the nearest one that it does."""
    wanted = _key(name)

    def likeness(candidate: str) -> float:
        return difflib.SequenceMatcher(None, wanted, _key(candidate)).ratio()

    names = [
        *(candidate.name for candidate in PRODUCTS),
        *dict.fromkeys(candidate.gfx for candidate in PRODUCTS),
    ]
    nearest = max(names, key=likeness)
    suggestion = f" (did you mean {nearest}?)" if likeness(nearest) >= 0.6 else ""
    return f"{name}: unknown GPU{suggestion}; known are {', '.join(names)}"


def _key(name: str) -> str:
    """Letters and digits only, without the brand: "AMD Instinct(TM) MI300X" -> "mi300x"."""
    words = re.sub(r"\((?:tm|r)\)|[™®]", "", name.lower())
    return re.sub(r"^(?:amd|instinct|radeon)+", "", re.sub(r"[^a-z0-9]", "", words))


@dataclass(frozen=True)
class Hardware:
    """The machine as the policy sees it.

    `engine` is the CPU engine in use on a machine without a GPU and None elsewhere; when it is a
    gfx name, `gfx` is that name too: the machine is then a virtual GPU of that kind. `product` is
    a name of PRODUCTS. `partition` is the compute partition mode ("SPX": whole GPUs, "CPX": one
    device for each XCD, ...); each partition counts as a device.
    """

    kind: Literal["amd", "nvidia", "cpu"]
    gfx: str | None = None
    device_count: int = 0
    device_memory_bytes: int | None = None
    host_memory_bytes: int | None = None
    engine: str | None = None
    product: str | None = None
    partition: str | None = None

    @property
    def virtual(self) -> bool:
        """Whether our kernels run on the CPU here, standing in for a GPU."""
        return self.kind == "cpu" and self.engine is not None

    @property
    def description(self) -> str:
        """A few words for the head of a table."""
        if self.kind == "amd":
            return self._amd_description
        if self.kind == "nvidia":
            return "NVIDIA GPU (a stand-in: nothing here is measured on AMD)"
        if self.engine is None:
            return "CPU without a GPU"
        if self.gfx is not None:
            return f"virtual {self.gfx} (machine code emulated on the CPU)"
        return f"CPU, kernels run by {_ENGINE_WORDS[self.engine]}"

    @property
    def _amd_description(self) -> str:
        partition = f", {self.partition} partitions" if self.partition not in (None, "SPX") else ""
        exact = product(self.product)
        if exact is not None:
            return f"{exact.brand} ({self.gfx}{partition})"
        facts = architecture(self.gfx)
        products = f" ({', '.join(facts.products)}{partition})" if facts else ""
        return f"AMD {self.gfx or 'GPU of unknown architecture'}{products}"


_ENGINE_WORDS = {"interpreter": "Triton's interpreter", "reference": "the PyTorch references"}


def virtual(engine: str, host_memory_bytes: int | None = None) -> Hardware:
    """A machine without a GPU whose kernels `engine` runs. ValueError on an unknown engine."""
    if engine not in CPU_ENGINES:
        raise ValueError(f"unknown CPU engine {engine!r}: choose one of {', '.join(CPU_ENGINES)}")
    return Hardware(
        kind="cpu",
        gfx=engine if engine.startswith("gfx") else None,
        device_count=1,
        host_memory_bytes=host_memory_bytes,
        engine=engine,
    )


def simulated(name: str, device_count: int = 1, host_memory_bytes: int | None = None) -> Hardware:
    """A machine that is not here, with whole GPUs of that product. ValueError on an unknown one.

    A gfx name means the first product of that gfx, and is then known by its gfx only.
    """
    facts = product(name)
    if facts is None:
        raise ValueError(unknown_product(name))
    by_gfx = _key(name) == facts.gfx
    return Hardware(
        kind="amd",
        gfx=facts.gfx,
        device_count=device_count,
        device_memory_bytes=facts.memory_bytes,
        host_memory_bytes=host_memory_bytes,
        product=None if by_gfx else facts.name,
    )


def detect(*, engine: str | None = None) -> Hardware:
    """The hardware of this machine; see `detection.detect`, which is imported only when called."""
    from vllm_amdopt import detection

    return detection.detect(engine=engine)
