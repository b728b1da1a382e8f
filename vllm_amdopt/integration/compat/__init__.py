"""Where vLLM versions differ, and the overrides for which vLLM has no hook yet.

Capability is tested, never the version number; only this folder may name vLLM versions.
"""
