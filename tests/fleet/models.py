"""The published configurations as vLLM reads them: a directory with a config.json for each.

Not a place for weights: there are none. What was changed for vLLM is in CHANGES.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

CHANGES = (
    "`auto_map` is left out: it names Python code in the model's repository, which is not here; "
    "vLLM's own class for the architecture is used.",
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
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        paths[name] = str(root / name)
    return paths
