"""vllm-amdopt: a plugin for stock vLLM that swaps in optimized AMD execution paths.

Importing this package does nothing: vLLM calls `vllm_amdopt.integration.plugin` through its
entry points, people call `vllm_amdopt.cli` through the `vllm-amdopt` command.
"""

__version__ = "0.1.0"
