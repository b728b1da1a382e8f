"""Conditions of features and rules, as data: each says why not, or None when it holds.

Every class is a frozen record with `refusal(situation)` (None = holds; else one sentence that
says what is in the way and, where there is a remedy, what to do) and `describe()` (what it asks,
for the generated pages). Conditions look at nothing but the Situation they are given.
Conditions on the model are in `model_conditions`.
"""

from dataclasses import dataclass
from typing import Protocol

from vllm_amdopt.hardware import architecture
from vllm_amdopt.policy.situation import Situation, is_true
from vllm_amdopt.policy.versions import contains, release


class Condition(Protocol):
    """What features and rules are made of."""

    def refusal(self, situation: Situation) -> str | None:
        """Why the condition does not hold, as one sentence without a full stop; None if it does."""

    def describe(self) -> str:
        """What the condition asks, as a phrase."""


@dataclass(frozen=True)
class AnyOf:
    """Holds when one of several does; otherwise refuses with the last one's sentence."""

    conditions: tuple[Condition, ...]

    def refusal(self, situation: Situation) -> str | None:
        sentence: str | None = None
        for condition in self.conditions:
            sentence = condition.refusal(situation)
            if sentence is None:
                return None
        return sentence

    def describe(self) -> str:
        return ", or ".join(condition.describe() for condition in self.conditions)


# --- the machine ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class KernelTarget:
    """A machine that our kernels are written for: these gfx, a CPU engine, or an NVIDIA GPU."""

    gfx: tuple[str, ...]

    def refusal(self, situation: Situation) -> str | None:
        hardware = situation.hardware
        if hardware.kind == "nvidia" or hardware.virtual:
            return None
        if hardware.kind == "cpu":
            return "there is no GPU here and no CPU engine (VLLM_AMDOPT_CPU_ENGINE) to stand in"
        if hardware.gfx in self.gfx:
            return None
        facts = architecture(hardware.gfx)
        if facts is not None and not facts.instinct:
            return (
                f"{hardware.gfx} is RDNA: the kernels are refused there until somebody tunes them"
            )
        return (
            f"{hardware.gfx or 'this AMD GPU'} is not one of {either(self.gfx)}, "
            "which the kernels are written for"
        )

    def describe(self) -> str:
        return f"GPU {either(self.gfx)}, a CPU engine, or an NVIDIA GPU as a stand-in"


@dataclass(frozen=True)
class AmdGpu:
    """A real AMD GPU: nothing that only makes sense on ROCm is set anywhere else."""

    elsewhere: str = "this only concerns AMD GPUs"

    def refusal(self, situation: Situation) -> str | None:
        return None if situation.hardware.kind == "amd" else self.elsewhere

    def describe(self) -> str:
        return "an AMD GPU"


@dataclass(frozen=True)
class GfxIn:
    """A real AMD GPU of one of these architectures; `why` ends the sentence."""

    gfx: tuple[str, ...]
    why: str = ""

    def refusal(self, situation: Situation) -> str | None:
        hardware = situation.hardware
        if hardware.kind != "amd":
            return f"this machine has no AMD GPU of {either(self.gfx)}"
        if hardware.gfx in self.gfx:
            return None
        return f"{hardware.gfx or 'this AMD GPU'} is not one of {either(self.gfx)}" + (
            f": {self.why}" if self.why else ""
        )

    def describe(self) -> str:
        return f"GPU {either(self.gfx)}"


@dataclass(frozen=True)
class Instinct:
    """An AMD Instinct GPU (gfx90a, gfx942, gfx950)."""

    def refusal(self, situation: Situation) -> str | None:
        facts = architecture(situation.hardware.gfx)
        if situation.hardware.kind == "amd" and facts is not None and facts.instinct:
            return None
        return f"{situation.hardware.gfx or 'this machine'} is not an AMD Instinct GPU"

    def describe(self) -> str:
        return "an AMD Instinct GPU"


@dataclass(frozen=True)
class VirtualDevice:
    """Our kernels run on the CPU: there the point is proof, not speed."""

    def refusal(self, situation: Situation) -> str | None:
        return None if situation.hardware.virtual else "this is not a virtual device"

    def describe(self) -> str:
        return "on a virtual device (a CPU engine: proof, not speed)"


@dataclass(frozen=True)
class CalibratedWin:
    """A calibration record says that the feature wins on this very GPU."""

    feature: str

    def refusal(self, situation: Situation) -> str | None:
        if self.feature in situation.measured_wins:
            return None
        return f"no measurement on this GPU yet; VLLM_AMDOPT_{self.feature.upper()}=on uses it"

    def describe(self) -> str:
        return "where a calibration on this GPU says that it wins"


@dataclass(frozen=True)
class EngineDtype:
    """Triton's interpreter computes bfloat16 wrongly, so it needs one of these dtypes."""

    dtypes: tuple[str, ...] = ("float32", "float16")

    def refusal(self, situation: Situation) -> str | None:
        if situation.hardware.engine != "interpreter" or situation.dtype in self.dtypes:
            return None
        return (
            f"Triton's interpreter cannot compute in {situation.dtype or 'an unknown dtype'}: "
            "set --dtype float32"
        )

    def describe(self) -> str:
        return f"dtype {either(self.dtypes)} with VLLM_AMDOPT_CPU_ENGINE=interpreter"


# --- parallelism ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorParallelAtLeast:
    """At least this many tensor-parallel ranks."""

    ranks: int

    def refusal(self, situation: Situation) -> str | None:
        size = situation.choices.tensor_parallel_size
        if size >= self.ranks:
            return None
        return f"tensor parallel size is {size}: there is nothing to reduce below {self.ranks}"

    def describe(self) -> str:
        return f"tensor parallel size at least {self.ranks}"


@dataclass(frozen=True)
class TensorParallelAtMost:
    """At most this many tensor-parallel ranks."""

    ranks: int

    def refusal(self, situation: Situation) -> str | None:
        size = situation.choices.tensor_parallel_size
        if size <= self.ranks:
            return None
        return f"tensor parallel size {size} is more than the {self.ranks} GPUs of one node"

    def describe(self) -> str:
        return f"tensor parallel size at most {self.ranks}"


@dataclass(frozen=True)
class RanksShareCpuMemory:
    """The ranks are CPU processes with an engine that runs kernels: what all-reduce is built for.

    To be lifted for GPUs when their peers' memory is mapped.
    """

    def refusal(self, situation: Situation) -> str | None:
        if not situation.hardware.virtual:
            return "our all-reduce cannot map the memory of peer GPUs yet; vLLM's own runs"
        if situation.hardware.engine == "reference":
            return "the reference engine runs no kernels, and between processes there is no other"
        return None

    def describe(self) -> str:
        return "between CPU processes (peer GPU memory is not mapped yet)"


@dataclass(frozen=True)
class PipelineParallelAtMost:
    """At most this many pipeline stages."""

    stages: int

    def refusal(self, situation: Situation) -> str | None:
        size = situation.choices.pipeline_parallel_size
        if size <= self.stages:
            return None
        return f"pipeline parallel size is {size}; nothing is reported for more than {self.stages}"

    def describe(self) -> str:
        return f"pipeline parallel size at most {self.stages}"


# --- software ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TritonPresent:
    """Triton is installed; the plain-PyTorch engine does without."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.software.triton is not None or situation.hardware.engine == "reference":
            return None
        if situation.hardware.kind == "cpu":
            return "Triton is not installed: pip install 'vllm-amdopt[cpu]', or install triton"
        return "Triton is not installed: install the triton package that belongs to your torch"

    def describe(self) -> str:
        return "Triton installed (not with VLLM_AMDOPT_CPU_ENGINE=reference)"


@dataclass(frozen=True)
class AiterPresent:
    """AMD's kernel library AITER is installed."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.software.aiter is not None:
            return None
        return (
            "AITER is not installed: use a ROCm vLLM image, or build the version that your vLLM "
            "names from https://github.com/ROCm/aiter"
        )

    def describe(self) -> str:
        return "AITER (package amd-aiter) installed"


@dataclass(frozen=True)
class AiterAtLeast:
    """AITER is at least this version; versions that cannot be read do not count."""

    version: tuple[int, ...]

    def refusal(self, situation: Situation) -> str | None:
        installed = situation.software.aiter
        if installed is None:
            return AiterPresent().refusal(situation)
        numbers = release(installed)
        wanted = ".".join(map(str, self.version))
        if numbers is None or (len(numbers) < 3 and numbers < self.version):
            return f"AITER says version {installed!r}, which cannot be compared with {wanted}"
        if numbers >= self.version:
            return None
        return (
            f"AITER {installed} is older than {wanted}, which this vLLM is written against: "
            "install a newer one"
        )

    def describe(self) -> str:
        return f"AITER {'.'.join(map(str, self.version))} or newer"


@dataclass(frozen=True)
class SeamPresent:
    """This vLLM has the place where the feature or rule is put in."""

    seam: str

    def refusal(self, situation: Situation) -> str | None:
        return situation.software.missing_seams.get(self.seam)

    def describe(self) -> str:
        return f"vLLM's seam `{self.seam}`"


@dataclass(frozen=True)
class PatchApplied:
    """This vLLM has the patch of this number (patches/manifest.toml)."""

    number: str

    def refusal(self, situation: Situation) -> str | None:
        if self.number in situation.software.patches:
            return None
        return f"{NEEDS_PATCH}{self.number}: `vllm-amdopt patches apply {self.number}`"

    def describe(self) -> str:
        return f"patch {self.number} applied to vLLM"


NEEDS_PATCH = "needs patch "


@dataclass(frozen=True)
class PatchAbsent:
    """This vLLM lacks the patch of this number; `remedied` says what the patch makes of it."""

    number: str
    remedied: str

    def refusal(self, situation: Situation) -> str | None:
        if self.number not in situation.software.patches:
            return None
        return f"patch {self.number} is applied: {self.remedied}"

    def describe(self) -> str:
        return f"patch {self.number} not applied to vLLM"


@dataclass(frozen=True)
class VllmIn:
    """vLLM, where its version is known, lies in the range that this was checked for."""

    version_range: str

    def refusal(self, situation: Situation) -> str | None:
        version = situation.software.vllm
        if version is None or contains(self.version_range, version) in (True, None):
            return None
        return f"checked for vLLM {self.version_range}, this is {version}"

    def describe(self) -> str:
        return f"vLLM {self.version_range}"


# --- the user ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BackendNotChosen:
    """The user named no attention backend, or named `backend`."""

    backend: str | None

    def refusal(self, situation: Situation) -> str | None:
        chosen = situation.choices.attention_backend
        if chosen is None or chosen == self.backend:
            return None
        return f"you chose --attention-backend {chosen}, which stays"

    def describe(self) -> str:
        return "no other --attention-backend given"


@dataclass(frozen=True)
class BlockSizeNotChosen:
    """The user gave no --block-size."""

    def refusal(self, situation: Situation) -> str | None:
        size = situation.choices.block_size
        return None if size is None else f"you gave --block-size {size}"

    def describe(self) -> str:
        return "no --block-size given"


@dataclass(frozen=True)
class OffloadNotChosen:
    """The user configured no KV offloading and no KV connector."""

    def refusal(self, situation: Situation) -> str | None:
        if not situation.choices.kv_offload:
            return None
        return "you configured KV offloading or a KV connector yourself, which stays"

    def describe(self) -> str:
        return "no KV offloading or KV connector configured"


@dataclass(frozen=True)
class CustomAllReduceNotDisabled:
    """The user did not pass --disable-custom-all-reduce."""

    def refusal(self, situation: Situation) -> str | None:
        if not situation.choices.disable_custom_all_reduce:
            return None
        return "you gave --disable-custom-all-reduce, which stays"

    def describe(self) -> str:
        return "no --disable-custom-all-reduce given"


@dataclass(frozen=True)
class VariableNotSet:
    """The user did not set this environment variable."""

    name: str

    def refusal(self, situation: Situation) -> str | None:
        value = situation.environment.get(self.name)
        return None if value is None else f"you set {self.name}={value}, which stays"

    def describe(self) -> str:
        return f"{self.name} not set"


@dataclass(frozen=True)
class MlaNotDisabled:
    """VLLM_MLA_DISABLE is not in force: with it vLLM runs MLA models as multi-head attention."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.environment.get("VLLM_MLA_DISABLE", "0").strip() in ("", "0"):
            return None
        return "VLLM_MLA_DISABLE makes vLLM run this model as multi-head attention"

    def describe(self) -> str:
        return "VLLM_MLA_DISABLE not set"


def either(names: tuple[str, ...]) -> str:
    """("a", "b", "c") -> "a, b or c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def aiter_in_force(situation: Situation) -> bool:
    """Whether vLLM will run with AITER on: the user's variable, else this plan's decision."""
    if situation.hardware.kind != "amd" or situation.software.aiter is None:
        return False
    if situation.hardware.gfx not in AITER_GFX:
        return False
    value = situation.environment.get("VLLM_ROCM_USE_AITER")
    return is_true(value) if value is not None else situation.decided.get("aiter", False)


AITER_GFX = ("gfx942", "gfx950")
"""vLLM's AITER paths need CDNA3 or newer (`is_aiter_found_and_supported`, vLLM 0.32)."""
