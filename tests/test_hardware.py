"""The tables of architectures and products, and the machine as the policy sees it."""

from __future__ import annotations

from dataclasses import fields

import pytest

from vllm_amdopt import detection
from vllm_amdopt.hardware import (
    ARCHITECTURES,
    GIB,
    PRODUCT_OF_PCI_DEVICE,
    PRODUCTS,
    Hardware,
    Product,
    architecture,
    detect,
    product,
    simulated,
    unknown_product,
    virtual,
)

TEXT_FIELDS = {"name", "gfx", "fp8_flavour", "sources"}


@pytest.mark.parametrize("facts", PRODUCTS, ids=lambda facts: facts.name)
def test_every_number_of_a_product_has_a_source_and_no_source_is_idle(facts: Product) -> None:
    numbers = {field.name for field in fields(facts)} - TEXT_FIELDS
    known = {name for name in numbers if getattr(facts, name) is not None}
    sources = facts.sources or {}
    assert known <= set(sources)
    assert set(sources) <= numbers
    assert all(source.strip() for source in sources.values())


@pytest.mark.parametrize("facts", PRODUCTS, ids=lambda facts: facts.name)
def test_numbers_of_a_product_fit_together(facts: Product) -> None:
    assert architecture(facts.gfx) is not None
    assert facts.fp8_flavour == getattr(architecture(facts.gfx), "fp8_flavour", None)
    if facts.compute_units and facts.xcds:
        assert facts.compute_units % facts.xcds == 0
    if facts.fp8_flops is not None:
        assert facts.fp8_flavour != "none"
        assert facts.bf16_flops is not None and facts.fp8_flops == 2 * facts.bf16_flops


@pytest.mark.parametrize(
    ("name", "bf16", "fp8"),
    [
        ("MI300X", 1307.4, 2614.9),
        ("MI325X", 1307.4, 2614.9),
        ("MI300A", 980.6, 1961.2),
        ("MI350X", 2306.9, 4613.7),
        ("MI355X", 2516.6, 5033.2),
        ("MI250", 181.0, None),
    ],
)
def test_peaks_are_the_published_ones(name: str, bf16: float, fp8: float | None) -> None:
    """In TFLOP a second, as AMD prints them (the MI250's 362.1 are those of both dies)."""
    facts = product(name)
    assert facts is not None and facts.bf16_flops is not None
    assert round(facts.bf16_flops / 1e12, 1) == bf16
    assert (facts.fp8_flops and round(facts.fp8_flops / 1e12, 1)) == fp8


def test_products_have_names_of_their_own() -> None:
    names = [facts.name for facts in PRODUCTS]
    assert len(set(names)) == len(names)
    assert set(PRODUCT_OF_PCI_DEVICE.values()) <= set(names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MI300X", "MI300X"),
        ("mi325x", "MI325X"),
        ("AMD Instinct MI355X", "MI355X"),
        ("AMD Instinct(TM) MI350X", "MI350X"),
        ("AMD_Instinct_MI300X_OAM", "MI300X"),
        ("MI300X-O", "MI300X"),
        ("AMD Instinct MI308X HF VF", "MI308X"),
        ("  instinct mi210 ", "MI210"),
        ("Radeon RX 7900 XTX", "Radeon RX 7900 XTX"),
        ("rx9070xt", "Radeon RX 9070 XT"),
        ("gfx942", "MI300X"),
        ("GFX950", "MI355X"),
        ("gfx90a", "MI250X"),
        ("gfx1201", "Radeon RX 9070 XT"),
        *((name, None) for name in ("MI330X", "MI300", "X", "", "AMD", "AMD Instinct", "N/A")),
        ("AMD Instinct MI250X / MI250", None),
        (None, None),
    ],
)
def test_product(name: str | None, expected: str | None) -> None:
    found = product(name)
    assert (found.name if found else None) == expected


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("MI330X", "MI330X: unknown GPU (did you mean MI300X?); known are MI300X, "),
        ("AMD Instinct MI355", "AMD Instinct MI355: unknown GPU (did you mean MI355X?); "),
        ("gfx943", "gfx943: unknown GPU (did you mean gfx942?); "),
        ("H100", "H100: unknown GPU; known are "),
        ("", ": unknown GPU; known are "),
    ],
)
def test_unknown_product_suggests_the_nearest(name: str, beginning: str) -> None:
    assert unknown_product(name).startswith(beginning)


def test_machine_that_is_not_here() -> None:
    found = simulated("mi325x", 8, 1024 * GIB)
    assert found == Hardware("amd", "gfx942", 8, 256 * GIB, 1024 * GIB, product="MI325X")
    assert found.description == "AMD Instinct MI325X (gfx942)"
    by_gfx = simulated("gfx942")
    assert (by_gfx.gfx, by_gfx.product, by_gfx.device_count) == ("gfx942", None, 1)
    with pytest.raises(ValueError, match="did you mean MI300X"):
        simulated("MI330X")


@pytest.mark.parametrize(
    ("hardware", "words"),
    [
        (
            Hardware("amd", "gfx942", 8),
            "AMD gfx942 (MI300X, MI325X, MI300A, MI308X)",
        ),
        (
            Hardware("amd", "gfx942", 8, partition="CPX"),
            "AMD gfx942 (MI300X, MI325X, MI300A, MI308X, CPX partitions)",
        ),
        (
            Hardware("amd", "gfx950", 1, product="MI355X", partition="SPX"),
            "AMD Instinct MI355X (gfx950)",
        ),
        (
            Hardware("amd", "gfx950", 8, product="MI355X", partition="CPX"),
            "AMD Instinct MI355X (gfx950, CPX partitions)",
        ),
        (Hardware("amd", "gfx1030", 1), "AMD gfx1030"),
        (Hardware("amd"), "AMD GPU of unknown architecture"),
        (
            Hardware("nvidia", device_count=1),
            "NVIDIA GPU (a stand-in: nothing here is measured on AMD)",
        ),
        (Hardware("cpu"), "CPU without a GPU"),
    ],
)
def test_description(hardware: Hardware, words: str) -> None:
    assert hardware.description == words


@pytest.mark.parametrize(
    ("engine", "gfx", "words"),
    [
        ("gfx942", "gfx942", "virtual gfx942 (machine code emulated on the CPU)"),
        ("gfx950", "gfx950", "virtual gfx950 (machine code emulated on the CPU)"),
        ("interpreter", None, "CPU, kernels run by Triton's interpreter"),
        ("reference", None, "CPU, kernels run by the PyTorch references"),
    ],
)
def test_virtual(engine: str, gfx: str | None, words: str) -> None:
    hardware = virtual(engine)
    assert (hardware.kind, hardware.gfx, hardware.engine) == ("cpu", gfx, engine)
    assert hardware.virtual
    assert hardware.description == words


def test_unknown_engine() -> None:
    with pytest.raises(ValueError, match="unknown CPU engine 'gfx900'"):
        virtual("gfx900")


def test_detect_here_is_detect_there() -> None:
    assert detect(engine="gfx942") == detection.detect(engine="gfx942")


def test_architectures() -> None:
    for name, facts in ARCHITECTURES.items():
        assert facts.gfx == name
        assert facts.products
        assert facts.source.startswith("https://")
        assert facts.lds_bytes_per_cu in (64 * 1024, 160 * 1024)
    assert {name for name, facts in ARCHITECTURES.items() if facts.instinct} == {
        "gfx90a",
        "gfx942",
        "gfx950",
    }
    assert ARCHITECTURES["gfx942"].fp8_flavour == "fnuz"
    assert ARCHITECTURES["gfx950"].fp8_flavour == "ocp"


@pytest.mark.parametrize(
    ("gfx", "entry"),
    [
        ("gfx942", "gfx942"),
        ("gfx1100", "gfx11"),
        ("gfx1151", "gfx11"),
        ("gfx1201", "gfx12"),
        *((gfx, None) for gfx in ("gfx1030", "gfx906", "gfx94", "", None)),
    ],
)
def test_architecture(gfx: str | None, entry: str | None) -> None:
    facts = architecture(gfx)
    assert (facts.gfx if facts else None) == entry
