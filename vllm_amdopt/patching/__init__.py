"""Small diffs for an installed vLLM: which there are, whether they fit, apply, reverse, overlay.

Standard library only, and neither git nor `patch` is needed. Nothing here runs by itself: a person
applies a patch with `vllm-amdopt patches`; the plugin only looks whether one is there.
"""
