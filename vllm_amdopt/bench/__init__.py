"""Measuring what serves: paired A/B runs, start-up, statistics and reports.

Nothing here is imported by the plugin inside vLLM; `vllm-amdopt` imports what a command needs.
"""
