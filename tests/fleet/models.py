"""The published configurations as vLLM reads them: a directory with a config.json for each.

Not a place for weights: there are none. What was changed for vLLM is in CHANGES.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

MISSING = {
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


def configurations(directory: Path) -> dict[str, dict[str, Any]]:
    """The configuration of each `*.json` in `directory`, by name."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found[path.stem] = record.get("config", record)
    return found


def write(configurations: dict[str, dict[str, Any]], root: Path) -> dict[str, str]:
    """A directory under `root` for each model; its path by the model's name."""
    paths = {}
    for name, config in configurations.items():
        config = copy.deepcopy(config)
        config.pop("auto_map", None)
        config |= MISSING.get(name, {})
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        paths[name] = str(root / name)
    return paths
