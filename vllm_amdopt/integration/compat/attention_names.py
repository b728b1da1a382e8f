"""Make our attention backends known by name to vLLM, in every process and every version."""

from __future__ import annotations


def register_attention_backend(name: str, class_path: str) -> None:
    """Add `name` to vLLM's attention backends; nothing happens when it is there already.

    Must run before a VllmConfig that names the backend is unpickled, so it is done in every process
    while vLLM resolves its platform.
    """
    from vllm.v1.attention.backends import registry

    backends = registry.AttentionBackendEnum
    if name in backends.__members__:
        return
    if hasattr(backends, "register"):
        registry.register_backend(name, class_path)
        return
    # vLLM 0.30 and 0.31 can replace a backend but not name a new one. What follows is what
    # `AttentionBackendEnum.register` does from 0.32 on. Remove when 0.32 is the lowest supported.
    member = object.__new__(backends)
    member._name_ = name
    member._value_ = class_path
    type.__setattr__(backends, name, member)
    backends._member_map_[name] = member
    backends._value2member_map_[class_path] = member
    backends._member_names_.append(name)
    registry._ATTN_OVERRIDES[member] = class_path
