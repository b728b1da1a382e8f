"""Published models by name: their config.json as it ships with the package, with its source.

Not a registry of models: a few files to try a plan on without a download. What is known about
where each is from, and what is missing in it, is in model_configs/README.md.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from vllm_amdopt.policy.config_reading import ModelConfigError, mapping, string

_DIRECTORY = Path(__file__).resolve().parent / "model_configs"


@dataclass(frozen=True)
class FixtureSource:
    """Where a shipped config is from; `verbatim` is False where fields of it are missing."""

    name: str
    hf_model: str
    origin: str
    verbatim: bool
    note: str

    @property
    def repository(self) -> str:
        """The model's name on Hugging Face alone: "google/gemma-3-27b-it"."""
        return re.split(r"[ (]", self.hf_model, maxsplit=1)[0]

    @property
    def sentence(self) -> str:
        """For a first line: "config of Qwen/Qwen3-8B, from PyPI aiconfigurator_core==0.12.0"."""
        whole = f"config of {self.hf_model}, from {self.origin}"
        if self.verbatim:
            return whole
        return f"{whole}; partial: policy/model_configs/{self.name}.json says what is missing"


def fixture_names() -> tuple[str, ...]:
    """The names that `fixture` knows, sorted."""
    return tuple(sorted(path.stem for path in _DIRECTORY.glob("*.json")))


def find_fixture(name: str) -> str | None:
    """The shipped config that `name` means, or None.

    It may be shortened ("qwen3-vl-235b"), or be the model's name on Hugging Face
    ("deepseek-ai/DeepSeek-V3"); of several that begin so, the one is meant of which most is known.
    """
    names = fixture_names()
    wanted = name.strip().lower()
    if wanted in names:
        return wanted
    if "/" in wanted:
        by_model = {fixture_source(known).hf_model.split(" ")[0].lower(): known for known in names}
        return by_model.get(wanted)
    longer = [known for known in names if wanted and known.startswith(f"{wanted}-")]
    # More than one: the whole config first, then one that is known in part, then the shorter name.
    return min(longer, key=_least_known_last, default=None)


def _least_known_last(name: str) -> tuple[bool, bool, int, str]:
    record = _record(name)
    quantized = "fp8" in name or "fp4" in name
    unknown = quantized and not mapping(mapping(record, "config"), "quantization_config")
    return not fixture_source(name).verbatim, unknown, len(name), name


def fixture(name: str) -> dict[str, object]:
    """The model's config.json; ModelConfigError in words for a name that is not shipped."""
    return dict(mapping(_record(name), "config"))


def fixture_source(name: str) -> FixtureSource:
    """Where the config is from; ModelConfigError as for `fixture`."""
    source = mapping(_record(name), "source")
    place = string(source, "package") or string(source, "repo") or "a source not named"
    return FixtureSource(
        name=name,
        hf_model=string(source, "hf_model") or name,
        origin=place,
        verbatim=source.get("verbatim") is True,
        note=string(source, "note") or "",
    )


def _record(name: str) -> dict[str, object]:
    names = fixture_names()
    if name not in names:
        raise ModelConfigError(_unknown(name, names))
    record = json.loads((_DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    return record if isinstance(record, dict) else {}


def _unknown(name: str, names: tuple[str, ...]) -> str:
    import difflib  # only for an error: importing it takes longer than reading a config

    near = difflib.get_close_matches(name.rpartition("/")[2].lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the names are {', '.join(names)}"
    return f"no model named {name!r} ships with vllm-amdopt: {hint}"
