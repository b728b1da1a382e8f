"""The one-shot all-reduce between real processes, its refusals, and its machine code."""

import contextlib
import multiprocessing
import os
import random
import time

import pytest
import torch

from tests.ops.all_reduce_protocol import violations
from vllm_amdopt import codegen
from vllm_amdopt.kernels.all_reduce_one_shot import CODEGEN_VARIANTS
from vllm_amdopt.ops.all_reduce_one_shot import (
    OneShotAllReduce,
    PeerTimeoutError,
    SharedRegions,
    reference,
    refusal,
    region_bytes,
)
from vllm_amdopt.ops.operation import RefusedError

MAX_BYTES = 1 << 15
CALLS = 50


def _engine(name):
    if name == "interpreter":
        return contextlib.nullcontext()
    from vllm_amdopt.emulator.launch import Device

    return Device(name)


def _all_reduce(rank, world_size, pipe, timeout_seconds):
    def exchange(mine):
        pipe.send(mine)
        return pipe.recv()

    shared = SharedRegions(rank, region_bytes(MAX_BYTES), exchange)
    return OneShotAllReduce(
        rank, world_size, shared.buffers, MAX_BYTES, timeout_seconds=timeout_seconds
    )


def _rank_that_calls(rank, world_size, pipe, engine, dtype):
    """CALLS calls of varying sizes on small integers, whose sums every dtype holds exactly"""
    try:
        dtype = getattr(torch, dtype)
        ours = _all_reduce(rank, world_size, pipe, timeout_seconds=120)
        device = _engine(engine)
        same_on_all, own = random.Random(5), random.Random(rank)
        wrong = []
        for call in range(CALLS):
            n = same_on_all.choice([16, 100, 1025, 1500])
            inputs = [
                torch.randint(
                    -8, 9, (n,), generator=torch.Generator().manual_seed(1000 * call + r)
                ).to(dtype)
                for r in range(world_size)
            ]
            before = inputs[rank].clone()
            if own.random() < 0.2:
                time.sleep(own.random() * 0.02)
            with device:
                out = ours.all_reduce(inputs[rank])
            if not torch.equal(out, reference(inputs)) or not torch.equal(before, inputs[rank]):
                wrong.append((call, n))
        pipe.send(f"wrong sums in calls {wrong}" if wrong else "ok")
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")
        raise


def _rank_that_leaves(rank, world_size, pipe, engine, dtype):
    """rank 1 dies after the first call; rank 0 calls once more"""
    x = torch.ones(64, dtype=getattr(torch, dtype))
    ours = _all_reduce(rank, world_size, pipe, timeout_seconds=5 if rank == 0 else 60)
    device = _engine(engine)
    first = 60.0
    ours.timeout_seconds, patience = first, ours.timeout_seconds
    with device:
        ours.all_reduce(x)
    if rank == 1:
        os._exit(0)
    ours.timeout_seconds = min(patience, 2.0)
    try:
        with device:
            ours.all_reduce(x)
        pipe.send("no error")
    except PeerTimeoutError as error:
        pipe.send(str(error))


def _run_ranks(target, world_size, engine, dtype, answers, monkeypatch):
    """start the ranks, play their `exchange`, return what the first `answers` ranks said"""
    if engine == "interpreter":
        # Triton's own library is interpreted or compiled as a whole, decided when it is imported.
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(world_size):
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(rank, world_size, theirs, engine, dtype))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        for _ in range(2):
            said = [pipe.recv() for pipe in pipes]
            for pipe in pipes:
                pipe.send(said)
        return [pipe.recv() for pipe in pipes[:answers]]
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()


@pytest.mark.parametrize(
    ("world_size", "engine", "dtype"),
    [
        (2, "gfx942", "bfloat16"),
        (4, "gfx950", "float32"),
        (2, "interpreter", "float16"),
        (4, "interpreter", "float32"),
    ],
    ids=["2-gfx942-bfloat16", "4-gfx950-float32", "2-interpreter-float16", "4-interpreter-float32"],
)
def test_consecutive_calls_of_varying_sizes_are_exact(world_size, engine, dtype, monkeypatch):
    left_before = set(os.listdir("/dev/shm"))
    answers = _run_ranks(_rank_that_calls, world_size, engine, dtype, world_size, monkeypatch)
    assert answers == ["ok"] * world_size
    left = {n for n in os.listdir("/dev/shm") if n.startswith("vllm_amdopt-")}
    assert not left - left_before


@pytest.mark.parametrize("engine", ["gfx942", "interpreter"])
def test_a_dead_peer_ends_in_an_error_that_says_so(engine, monkeypatch):
    (answer,) = _run_ranks(_rank_that_leaves, 2, engine, "float32", 1, monkeypatch)
    assert answer.startswith("rank 0 of 2 has waited 2 s for the other ranks")


def _alone(world_size=2, max_bytes=MAX_BYTES, **options):
    regions = [torch.zeros(region_bytes(max_bytes), dtype=torch.uint8) for _ in range(world_size)]
    return OneShotAllReduce(0, world_size, regions, max_bytes, **options)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"shape": (MAX_BYTES // 2 + 1,)}, "bytes are more than the"),
        ({"dtype": torch.float64}, "float64"),
        ({"dtype": torch.int32}, "int32"),
        ({"world_size": 1}, "2 to 8 ranks"),
        ({"world_size": 9}, "2 to 8 ranks"),
        ({"gfx": "gfx1100"}, "gfx1100"),
        ({"implementation": "reference"}, "reference engine"),
    ],
    ids=["too-big", "float64", "int32", "1-rank", "9-ranks", "rdna", "reference-engine"],
)
def test_refusals_say_why(facts, words):
    usual = {"shape": (4, 64), "dtype": torch.bfloat16, "world_size": 2, "max_bytes": MAX_BYTES}
    assert refusal(**usual) is None
    assert words in refusal(**(usual | facts))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(8, 8, dtype=torch.float32).T[:4], "not contiguous"),
        (torch.zeros(65, dtype=torch.float32)[1:], "not 16-byte aligned"),
        (torch.zeros(MAX_BYTES, dtype=torch.float32), "bytes are more than"),
    ],
    ids=["not-contiguous", "misaligned", "too-big"],
)
def test_a_call_refuses_what_it_cannot_do(x, words):
    with pytest.raises(RefusedError, match=words):
        _alone().all_reduce(x)


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ([torch.zeros(1 << 17, dtype=torch.uint8)], "one region per rank"),
        ([torch.zeros(1 << 10, dtype=torch.uint8)] * 2, "pass uint8 tensors of"),
        ([torch.zeros((1 << 17) + 1, dtype=torch.uint8)[1:]] * 2, "not 16-byte aligned"),
    ],
    ids=["one-missing", "too-small", "misaligned"],
)
def test_bad_regions_are_refused(regions, words):
    with pytest.raises(ValueError, match=words):
        OneShotAllReduce(0, 2, regions, MAX_BYTES)


def test_an_empty_tensor_needs_no_peer():
    assert _alone().all_reduce(torch.zeros(0, 8)).shape == (0, 8)


@pytest.mark.parametrize("gfx", ["gfx942", "gfx950"])
@pytest.mark.parametrize("variant", CODEGEN_VARIANTS, ids=lambda variant: variant.name)
def test_machine_code_waits_polls_and_reads_as_the_protocol_needs(variant, gfx):
    text = codegen.compile_variant(variant, gfx).asm["amdgcn"]
    assert violations(text, variant.constexprs["WORLD"]) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("_store_dwordx4", "_store_dwordx2", "16 bytes a lane"),
        ("off sc0 sc1", "off", "not written through"),
        ("vmcnt(0)", "vmcnt(1)", "nothing waits"),
        ("buffer_wbl2 sc0 sc1", "buffer_wbl2 sc1", "not released to the system"),
        ("global_load_dword ", "buffer_load_dword ", "not polled at system scope"),
        ("s_barrier", "s_nop 0", "before all waves have copied"),
        ("s_barrier", "s_nop 0", "before the one that saw the flags"),
        ("s_barrier", "s_nop 0", "before all its waves are"),
        ("global_load_dwordx4", "global_load_dwordx2", "not there at all"),
        ("sc0 sc1", "sc1", "not there at all"),
    ],
)
def test_machine_code_that_does_not_is_noticed(old, new, words):
    text = codegen.compile_variant(CODEGEN_VARIANTS[0], "gfx942").asm["amdgcn"]
    assert old in text
    assert any(words in sentence for sentence in violations(text.replace(old, new), 2))
