"""Every registered implementation as emulated machine code, case by case, on both chips.

`pytest tests/kernels -k gfx950` and the like choose among them; the ids are
operation-implementation-case-dtype-chip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.kernels import registry
from vllm_amdopt.emulator.definitions import EndlessLoop, MemFault

TESTS = list(registry.kernel_tests())


def what_is_wrong(test: registry.KernelTest, emulate: Callable[..., Any]) -> str | None:
    """None where the result is right and no two waves met in LDS, otherwise what is wrong.

    Memory that PyTorch allocates holds NaN, so that a kernel's reading of what nobody wrote shows.
    """
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        with emulate(test.gfx, races=True) as device:
            wrong = test.run()
    except (MemFault, EndlessLoop) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        torch.use_deterministic_algorithms(False)
    races = [race for launch in device.launches for race in launch["lds_races"]]
    if wrong is None and races:
        return races[0]
    if wrong is None and bool(device.launches) == (test.case.name == "no_token"):
        return f"{len(device.launches)} kernels were launched."
    return wrong


@pytest.mark.parametrize("test", [pytest.param(test, id=test.id) for test in TESTS])
def test_keeps_the_error_budget(test, emulate) -> None:
    assert what_is_wrong(test, emulate) is None


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
