"""Our subclass of the CUDA platform that vLLM would have chosen: the kernels' stand-in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.platforms import builtin_platform_plugins
from vllm.utils.import_utils import resolve_obj_by_qualname

from vllm_amdopt.integration.platform import AmdOptPlatform

if TYPE_CHECKING:
    from vllm.platforms.cuda import CudaPlatform as _BuiltinPlatform
else:
    _BuiltinPlatform = resolve_obj_by_qualname(builtin_platform_plugins["cuda"]())


class AmdOptCudaPlatform(AmdOptPlatform, _BuiltinPlatform):
    """vLLM's CUDA platform with our hooks."""

    platform_name = "cuda"
