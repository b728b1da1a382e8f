"""The policy: what to swap and what to set for a model on a machine, as data and pure functions.

Standard library only. Knows neither torch nor vLLM: `integration` hands it facts and applies the
plan it returns.
"""
