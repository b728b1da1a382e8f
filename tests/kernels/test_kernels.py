"""Every registered implementation as emulated machine code, case by case, on both chips.

`pytest tests/kernels -k gfx950` and the like choose among them; the ids are
operation-implementation-case-dtype-chip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch

from tests.kernels import registry
from vllm_amdopt.emulator.definitions import EndlessLoop, MemFault
from vllm_amdopt.ops import workspace

TESTS = list(registry.kernel_tests())


def what_is_wrong(test: registry.KernelTest, emulate: Callable[..., Any]) -> str | None:
    """None where the result is right and no two waves met in LDS, otherwise what is wrong.

    Memory that PyTorch allocates holds NaN, so that a kernel's reading of what nobody wrote shows.
    The memory that split kernels share is new each time: a kernel that a fault stopped half-way
    leaves counters behind with which every later launch would be wrong.
    """
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        with (
            mock.patch.dict(workspace._taken, clear=True),
            emulate(test.gfx, races=True) as device,
        ):
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


# (operation, implementation) -> case -> what its refusal says; nothing else may be refused.
REFUSED = {
    ("paged_attention_decode", "gluon"): {
        "block_1_window_cap": "blocks of 8 to 128 tokens",
        "group_20_token_major": "1 to 16 query heads",
        "group_70_takes_two_tiles": "head size 32",
        "head_256_cap": "blocks of 8 to 128 tokens",
        "fp8_block_1_window_sinks": "blocks of 8 to 128 tokens",
        "3_tokens_window_everything": "7 query heads per KV head, times 3 query tokens",
        "8_tokens_take_two_tiles": "10 query heads per KV head, times 8 query tokens",
    },
}


def test_every_case_runs_in_bfloat16_on_both_chips_or_is_refused_as_listed() -> None:
    ids = {test.id for test in TESTS}
    assert len(ids) == len(TESTS)
    for name, operation in registry.operations().items():
        suite = registry.SUITES[name]
        for case in suite.cases:
            for gfx in registry.GFX:
                taken = []
                for implementation in operation.implementations:
                    refused = REFUSED.get((name, implementation.name), {}).get(case.name)
                    run = f"{name}-{implementation.name}-{case.name}-bf16-{gfx}" in ids
                    assert run == (refused is None), (case.name, implementation.name)
                    if refused is not None:
                        test = registry.KernelTest(
                            operation, implementation, case, "bf16", torch.bfloat16, gfx
                        )
                        facts = registry.facts_of(test)
                        assert refused in (implementation.refusal(**facts) or "")
                    taken.append(run)
                assert any(taken), case.name


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
