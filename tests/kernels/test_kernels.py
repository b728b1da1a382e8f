"""Every registered implementation as emulated machine code, case by case, on both chips.

`pytest tests/kernels -k gfx950` and the like choose among them; the ids are
operation-implementation-case-dtype-chip.
"""

from __future__ import annotations

import pytest
import torch

from tests.kernels import registry

TESTS = list(registry.kernel_tests())


@pytest.mark.parametrize("test", [pytest.param(test, id=test.id) for test in TESTS])
def test_keeps_the_error_budget(test, emulate) -> None:
    with emulate(test.gfx) as device:
        assert test.run() is None
        launched = len(device.launches)
    assert bool(launched) != (test.case.name == "no_token")


def test_every_operation_has_cases_and_every_case_an_operation() -> None:
    assert set(registry.SUITES) == set(registry.operations())


def test_every_implementation_runs_every_case_in_bfloat16_on_both_chips() -> None:
    ids = {test.id for test in TESTS}
    assert len(ids) == len(TESTS)
    for name, operation in registry.operations().items():
        for implementation in operation.implementations:
            for case in registry.SUITES[name].cases:
                for gfx in registry.GFX:
                    assert f"{name}-{implementation.name}-{case.name}-bf16-{gfx}" in ids


def test_every_operation_runs_in_fp16_and_fp32_too() -> None:
    for name in registry.operations():
        for dtype in ("fp16", "fp32"):
            for gfx in registry.GFX:
                assert any(
                    test.operation.name == name and (test.dtype_name, test.gfx) == (dtype, gfx)
                    for test in TESTS
                )


def test_fp8_is_the_flavour_of_the_chip() -> None:
    assert registry.dtypes("gfx942")["fp8"] is torch.float8_e4m3fnuz
    assert registry.dtypes("gfx950")["fp8"] is torch.float8_e4m3fn
