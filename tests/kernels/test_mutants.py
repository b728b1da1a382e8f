"""The suite notices one wrong index, one missing mask and one dropped barrier in a kernel.

The mutants run through the same cases as the real kernels; each has to end in wrong numbers, in an
access outside the tensors, or, without a barrier, in two waves at the same bytes of LDS.
"""

from __future__ import annotations

import importlib

import pytest

from tests.kernels import mutants, registry
from tests.kernels.mutants import MISSING_MASK, WRONG_INDEX, Mutant
from tests.kernels.test_kernels import what_is_wrong
from vllm_amdopt import kernels

TESTS = {test.id: test for test in registry.kernel_tests()}
GFX = "gfx942"


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(mutant, id=f"{kind}-{mutant.stem}-{mutant.name}")
        for kind, group in (("index", WRONG_INDEX), ("mask", MISSING_MASK))
        for mutant in group
    ],
)
def test_a_mutant_is_caught(mutant: Mutant, tmp_path, monkeypatch, emulate) -> None:
    test = TESTS[f"{mutant.stem}-triton-{mutant.case}-bf16-{GFX}"]
    importlib.import_module(f"{kernels.__name__}.{mutant.stem}")
    monkeypatch.setattr(kernels, mutant.stem, mutants.load(mutant, tmp_path))
    assert what_is_wrong(test, emulate) is not None
