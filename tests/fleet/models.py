"""The published configurations as vLLM reads them: a directory with a config.json for each.

Not a place for weights: there are none. What was changed for vLLM is in CHANGES.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

MISSING: Mapping[str, Mapping[str, object]] = {
    "minimax-m2": {
        "rotary_dim": 64,
        "use_qk_norm": True,
        "use_routing_bias": True,
        "shared_intermediate_size": 0,
        "scoring_func": "sigmoid",
    },
}
"""Keys that a partial copy of a configuration lacks and vLLM's model class reads."""

CHANGES = (
    "`auto_map` is left out: it names Python code in the model's repository, which is not here; "
    "vLLM's own classes for the configuration and the model are used.",
    "minimax-m2: the copy of its configuration lacks `rotary_dim`, `use_qk_norm`, "
    "`use_routing_bias`, `shared_intermediate_size` and `scoring_func`; they are minimax-m2.5's.",
)


def published() -> dict[str, dict[str, object]]:
    """The configurations that ship with the package, by name."""
    from vllm_amdopt.policy.model_fixtures import fixture, fixture_names

    return {name: fixture(name) for name in fixture_names()}


def write(configurations: Mapping[str, Mapping[str, object]], root: Path) -> dict[str, str]:
    """A directory under `root` for each model; its path by the model's name."""
    paths = {}
    for name, config in configurations.items():
        written = {key: value for key, value in config.items() if key != "auto_map"}
        written |= MISSING.get(name, {})
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "config.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
        paths[name] = str(root / name)
    return paths
