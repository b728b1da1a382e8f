"""Checks of the machine: device files, partitions, kernel settings, memory, firmware, caches."""

from vllm_amdopt.commands.facts import Facts
from vllm_amdopt.commands.findings import Check, Finding, advice, fine, wrong
from vllm_amdopt.detection import counted
from vllm_amdopt.hardware import GIB, architecture, product

_SHARED_MEMORY_ENOUGH = 8 * GIB
"""Docker's default of 64 MiB ends in NCCL errors with tensor parallelism; --shm-size=10gb is what
vLLM's maintainers answer (vllm#1710, NVIDIA/nccl#342)."""

_DISK_ENOUGH = 10 * GIB
"""A torch.compile cache, AITER's compiled modules and Triton's take some GiB for each model."""

_MEC_ENOUGH = 177
"""From this microcode on scratch memory is reclaimed safely (vllm#39010, vllm recipes; ROCm 6.4
release notes). The number counts the MI300 series' firmware, gfx942. KFD's node property
`fw_version` is this number (the kernel's amdkfd/kfd_topology.c: kfd->mec_fw_version)."""


def gpu(facts: Facts) -> Finding:
    """Whether this process sees the GPU at all, and which."""
    hardware = facts.hardware
    if hardware.kind == "amd":
        kinds = {one.gfx for one in facts.gpus}
        names = counted(one.product or one.gfx for one in facts.gpus)
        known = architecture(hardware.gfx)
        if known is None:
            return wrong(
                f"{names or hardware.gfx}: vllm-amdopt and vLLM know nothing about this GPU",
                "use an Instinct MI200, MI300 or MI350, or a Radeon of RDNA3 or RDNA4",
            )
        if len(kinds) > 1:
            return advice(
                f"GPUs of several kinds are here: {names}",
                "choose those of one kind with HIP_VISIBLE_DEVICES",
            )
        return fine(names or hardware.description)
    if facts.expects_amd:
        return wrong(
            f"{counted(facts.on_bus)} on the PCI bus, but the driver shows no GPU to this process",
            "load the amdgpu driver on the host; in a container pass --device /dev/kfd "
            "--device /dev/dri",
        )
    if hardware.kind == "nvidia":
        return fine("an NVIDIA GPU, no AMD GPU: only what does not depend on one is judged")
    return fine("no GPU here: only what does not depend on one is judged")


def devices(facts: Facts) -> Finding:
    for name, access in facts.devices.items():
        if access == "absent":
            return wrong(
                f"{name} is missing: HIP cannot reach the GPU",
                f"load the amdgpu driver; in a container pass --device {name}",
            )
        if access == "denied":
            return wrong(
                f"{name} may not be read and written by this user",
                "add the user to the groups render and video and log in again; in a container "
                "pass --group-add with the host's number of group render",
            )
    return fine("/dev/kfd and /dev/dri are open to this user")


def partition(facts: Facts) -> Finding | None:
    mode = facts.hardware.partition
    if mode is None:
        return None
    if mode == "SPX":
        return fine("whole GPUs (SPX)")
    whole = product(facts.hardware.product)
    size = f" of {whole.memory_bytes // GIB} GiB" if whole and whole.memory_bytes else ""
    return advice(
        f"the GPUs are in {mode} mode: every device is a part of a GPU{size}, with a part of its "
        "compute units and memory bandwidth",
        "for one large model switch back: sudo amd-smi set --compute-partition SPX, after "
        "--memory-partition NPS1 if that was changed; for many small servers leave it",
    )


def numa_balancing(facts: Facts) -> Finding | None:
    """https://rocm.docs.amd.com, vLLM inference: else "the GPU might hang" until it is done."""
    if facts.numa_balancing is None:
        return None
    if facts.numa_balancing:
        return advice(
            "the kernel moves memory between NUMA nodes by itself; AMD advises against it, GPUs "
            "stall while it does",
            "on the host: sudo sysctl kernel.numa_balancing=0",
        )
    return fine("NUMA balancing is off")


def shared_memory(facts: Facts) -> Finding | None:
    size = facts.shared_memory_bytes
    if size is None:
        return None
    words = f"/dev/shm holds {size / GIB:.1f} GiB"
    if size >= _SHARED_MEMORY_ENOUGH or (not facts.expects_amd and size >= GIB):
        return fine(words)
    sentence = f"{words}: workers and RCCL exchange data through it"
    remedy = "run the container with --ipc=host or --shm-size 16g"
    if size < GIB and facts.expects_amd:
        return wrong(sentence, remedy)
    return advice(sentence, remedy)


def locked_memory(facts: Facts) -> Finding:
    size = facts.locked_memory_bytes
    if size is None or size >= GIB:
        return fine("memory may be locked")
    return advice(
        f"this user may lock {size // 1024} KiB of memory only: pinned buffers and RDMA need more",
        "ulimit -l unlimited; for a container --ulimit memlock=-1",
    )


def scratch_reclaim(facts: Facts) -> Finding | None:
    """Old microcode and scratch reclaim together crash RCCL, or cost it its fast protocol."""
    versions = [one.mec_firmware for one in facts.gpus if one.mec_firmware is not None]
    if facts.hardware.gfx != "gfx942" or not versions:
        return None
    oldest = min(versions)
    is_set = facts.environment.get("HSA_NO_SCRATCH_RECLAIM", "").strip() == "1"
    if oldest >= _MEC_ENOUGH or is_set:
        return fine(
            f"compute microcode {oldest}" + (", HSA_NO_SCRATCH_RECLAIM=1" if is_set else "")
        )
    return wrong(
        f"compute microcode (MEC) {oldest} is older than {_MEC_ENOUGH}: with it reclaiming scratch "
        "memory makes collectives fail or run slowly (vllm#39010)",
        "set HSA_NO_SCRATCH_RECLAIM=1, or update the GPU's firmware",
    )


def in_use(facts: Facts) -> Finding:
    if not facts.gpu_processes:
        return fine("no other process holds a GPU")
    shown = ", ".join(map(str, facts.gpu_processes[:5]))
    more = ", ..." if len(facts.gpu_processes) > 5 else ""
    return advice(
        f"other processes hold a GPU already ({shown}{more}): vLLM finds less memory than it "
        "plans with, and timings are not to be trusted",
        "end them, or choose other GPUs with HIP_VISIBLE_DEVICES",
    )


def host_memory(facts: Facts) -> Finding | None:
    """Weights pass through the host's page cache, and KV offload lives in its memory."""
    host, device = facts.hardware.host_memory_bytes, facts.hardware.device_memory_bytes
    if host is None or device is None:
        return None
    if host < device:
        return advice(
            f"{host / GIB:.0f} GiB of host memory for GPUs of {device / GIB:.0f} GiB: loading "
            "weights is slow, and there is no room to offload KV cache",
            "raise the container's memory limit; leave --kv-offloading-size unset",
        )
    return fine(f"{host / GIB:.0f} GiB of host memory")


def caches(facts: Facts) -> Finding | None:
    if not facts.caches:
        return None
    for cache in facts.caches:
        if not cache.writable and cache.variable != "HF_HOME":  # may be a store shared read-only
            return wrong(
                f"{cache.path} cannot be written: every start compiles anew, or fails",
                f"set {cache.variable} to a directory of yours",
            )
    for cache in facts.caches:
        if cache.free_bytes is not None and cache.free_bytes < _DISK_ENOUGH:
            return advice(
                f"{cache.free_bytes / GIB:.1f} GiB are free under {cache.path}",
                f"make room, or set {cache.variable} to a larger disk",
            )
    return fine("caches are writable and have room")


CHECKS = (
    Check("gpu", gpu),
    Check("device files", devices, needs_amd=True),
    Check("partition", partition, needs_amd=True),
    Check("numa balancing", numa_balancing, needs_amd=True),
    Check("shared memory", shared_memory),
    Check("locked memory", locked_memory, needs_amd=True),
    Check("scratch reclaim", scratch_reclaim, needs_amd=True),
    Check("in use", in_use, needs_amd=True),
    Check("host memory", host_memory, needs_amd=True),
    Check("caches", caches),
)
