"""The serving rules by topic; `policy.serving_rules` puts them in order."""
