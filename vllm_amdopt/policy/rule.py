"""What a serving rule is: a vLLM setting or variable, the machine and model it fits, and why.

The rules themselves are in `rules/`, by topic; `serving_rules` puts them in order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy.features import VLLM_RANGE, Evidence
from vllm_amdopt.policy.situation import SettingValue, Situation

DEFAULT = "default"
"""As a setting's value: drop what the user gave and let vLLM decide."""

ENVIRONMENT = "env."
"""Settings whose name begins with this are environment variables."""


class Settings(Protocol):
    """What a rule sets, computed from the situation."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        """Setting -> value; `env.NAME` is an environment variable."""

    def remark(self, situation: Situation) -> str | None:
        """What else has to be said about these values, as a phrase; None if nothing."""

    def describe(self) -> str:
        """What is set, as a phrase."""


@dataclass(frozen=True)
class Rule:
    """One rule. `requires`, `default_when`, `yields_to` and the texts are as in Feature.

    `level` says how far it may go. `safe`: applied wherever the user set nothing; `opt-in`: only
    when switched on; `guard`: for a combination that would crash or answer wrongly, so it also
    acts where VLLM_AMDOPT is a list without it.

    `action` says what it does when it applies. `set`: values where the user set none. `repair`:
    values even where the user set others. `refuse`: nothing can be repaired, so the server ends
    with the remark before it has loaded any weights. `advise`: the remark is said, nothing is set.
    """

    name: str
    sets: Settings
    seam: str
    level: Literal["safe", "opt-in", "guard"]
    reason: str
    requires: tuple[when.Condition, ...]
    default_when: tuple[when.Condition, ...]
    yields_to: tuple[when.Condition, ...]
    evidence: Evidence
    source: str
    remove_when: str
    vllm: str = VLLM_RANGE
    action: Literal["set", "repair", "refuse", "advise"] = "set"

    @property
    def switch(self) -> str:
        """The environment variable that switches it."""
        return f"VLLM_AMDOPT_{self.name.upper()}"


def chosen_by_user(situation: Situation, setting: str) -> SettingValue | None:
    """The value that the user gave vLLM for `setting` themselves, or None if they gave none."""
    if setting.startswith(ENVIRONMENT):
        return situation.environment.get(setting.removeprefix(ENVIRONMENT))
    choices = situation.choices
    values: Mapping[str, SettingValue | None] = {
        "block_size": choices.block_size,
        "moe_backend": choices.moe_backend,
        "fuse_allreduce_rms": choices.fuse_allreduce_rms,
        "fuse_rope_kvcache": choices.fuse_rope_kvcache,
        "mm_encoder_tp_mode": choices.mm_encoder_tp_mode,
    }
    return values.get(setting)
