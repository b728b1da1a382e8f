"""The suite notices one wrong index, one missing mask and one dropped barrier in a kernel.

The mutants run through the same cases as the real kernels; each has to end in wrong numbers, in an
access outside the tensors, or, without a barrier, in two waves at the same bytes of LDS.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from tests.kernels import mutants, registry
from tests.kernels.gluon_mutants import GLUON
from tests.kernels.mutants import BORDERS, MISSING_MASK, WRONG_INDEX, Mutant
from tests.kernels.test_kernels import what_is_wrong
from tests.ops.all_reduce_protocol import violations
from vllm_amdopt import kernels
from vllm_amdopt.emulator import launch

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


@pytest.mark.parametrize("mutant", GLUON, ids=lambda mutant: mutant.name)
def test_a_mutant_in_gluon_is_caught(mutant: Mutant, tmp_path, monkeypatch, emulate) -> None:
    stem = mutant.stem.rpartition("/")[2]
    test = TESTS[f"{stem}-gluon-{mutant.case}-bf16-{GFX}"]
    cdna = importlib.import_module(f"{kernels.__name__}.cdna")
    importlib.import_module(f"{cdna.__name__}.{stem}")
    monkeypatch.setattr(cdna, stem, mutants.load(mutant, tmp_path))
    assert what_is_wrong(test, emulate) is not None


# Small, with several rounds of the main loop.
WITH_BARRIERS = {
    "paged_attention_decode": BORDERS,
    "paged_attention_prefill": "alibi_group_3_block_8",
    "mla_decode": "block_64_3_heads_without_lse",
    "gemm_small_batch": "17_rows_views",
    "all_reduce_one_shot": "2_ranks_growing_and_shrinking",
}


@pytest.mark.parametrize("gfx", registry.GFX)
@pytest.mark.parametrize("operation", WITH_BARRIERS)
def test_a_dropped_barrier_is_caught(operation: str, gfx: str, monkeypatch, emulate) -> None:
    """Each place in the machine code that holds barriers, one after the other."""
    test = TESTS[f"{operation}-triton-{WITH_BARRIERS[operation]}-bf16-{gfx}"]
    run = launch.run
    texts: set[str] = set()

    def remember(text: str, *arguments: Any, **options: Any) -> Any:
        texts.add(text)
        return run(text, *arguments, **options)

    monkeypatch.setattr(launch, "run", remember)
    assert what_is_wrong(test, emulate) is None
    mutants_made = 0
    for whole in sorted(texts):
        # The protocol between ranks is for elements that are moved 16 bytes a lane.
        protocol = operation == "all_reduce_one_shot" and violations(whole, 2) == []
        if operation == "all_reduce_one_shot" and not protocol:
            continue
        for place in mutants.barrier_places(whole):
            mutant = mutants.without_lines(whole, place)
            mutants_made += 1
            if protocol and violations(mutant, 2):
                continue  # what the emulator, which runs waves in step, cannot show

            def run_mutant(text: str, *arguments: Any, **options: Any) -> Any:
                return run(mutant if text == whole else text, *arguments, **options)  # noqa: B023

            monkeypatch.setattr(launch, "run", run_mutant)
            assert what_is_wrong(test, emulate) is not None, place
    assert mutants_made > 1
