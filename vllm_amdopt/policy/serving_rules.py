"""The serving rules in the order in which they are decided: a later one sees the earlier decisions.

Same shape as a feature, but a rule sets a value of vLLM's; it swaps no code.
"""

from vllm_amdopt.policy.features import FEATURES, Feature
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.rules import (
    aiter,
    attention,
    collectives,
    experts,
    fusion,
    kv_cache,
    models,
    startup,
    variables,
)

RULES: tuple[Rule, ...] = (
    *aiter.RULES,
    *experts.RULES,
    *collectives.RULES,
    *models.RULES,
    *attention.RULES,
    *kv_cache.RULES,
    *fusion.RULES,
    *startup.RULES,
    *variables.RULES,
    *aiter.LAST,
)

ENTRIES: tuple[Feature | Rule, ...] = (*FEATURES, *RULES)
"""Everything that a plan decides, in the order in which it is decided."""
