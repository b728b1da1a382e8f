"""How many waves of a kernel share one SIMD. Arithmetic on registers and LDS; runs nothing.

A compute unit of gfx942 and gfx950 has 4 SIMDs (AMD Instinct MI300 ISA, "Hardware overview").

Registers: a lane has 512 on its SIMD, ordinary and accumulation registers together, handed out in
steps of 8, to at most 8 waves (LLVM, AMDGPUBaseInfo.cpp: getTotalNumVGPRs, getVGPRAllocGranule and
getMaxWavesPerEU for gfx90a and later; "AMDGPU usage", section on .amdhsa_accum_offset). LLVM prints
the same number as `; Occupancy:` under each kernel, which a test compares.

LDS: shared by the workgroups of a compute unit, handed out in steps of 512 bytes on gfx942 and 1280
on gfx950 (LLVM, GCNSubtarget / AMDGPU.td: FeatureLocalMemorySize65536 and 163840, whose granule is
the size over 128).
"""

from __future__ import annotations

from vllm_amdopt.hardware import ARCHITECTURES

SIMDS = 4
REGISTERS_PER_LANE = 512
REGISTER_GRANULE = 8
MOST_WAVES = 8
LDS_GRANULES = 128


def waves_by_registers(registers: int) -> int:
    """Waves per SIMD that the register file holds."""
    granules = -(-max(registers, 1) // REGISTER_GRANULE)
    return min(MOST_WAVES, REGISTERS_PER_LANE // (granules * REGISTER_GRANULE))


def workgroups_by_lds(lds_bytes: int, gfx: str) -> int | None:
    """Workgroups per compute unit that the LDS holds; None for a kernel without LDS."""
    if not lds_bytes:
        return None
    size = lds_of(gfx)
    granule = size // LDS_GRANULES
    return size // (-(-lds_bytes // granule) * granule)


def lds_of(gfx: str) -> int:
    """Bytes of LDS of one compute unit."""
    size = ARCHITECTURES[gfx].lds_bytes_per_cu
    if not size:
        raise ValueError(f"the size of {gfx}'s LDS is not known.")
    return size


def waves_per_simd(registers: int, lds_bytes: int, num_warps: int, gfx: str) -> float:
    """Waves per SIMD with whole workgroups resident; below 1 where a workgroup leaves SIMDs idle.

    0 where a single workgroup does not fit.
    """
    workgroups = waves_by_registers(registers) * SIMDS // num_warps
    by_lds = workgroups_by_lds(lds_bytes, gfx)
    if by_lds is not None:
        workgroups = min(workgroups, by_lds)
    return workgroups * num_warps / SIMDS
