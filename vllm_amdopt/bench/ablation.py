"""The arms of an ablation, from the registry of features: each one alone, all but one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vllm_amdopt.bench.plan import Arm, PlanError
from vllm_amdopt.policy.features import FEATURES

Mode = Literal["alone", "all-but-one", "both"]
MODES: tuple[Mode, ...] = ("alone", "all-but-one", "both")

_SWITCH = {feature.name: feature.switch for feature in FEATURES}


def chosen_features(text: str | None) -> tuple[str, ...]:
    """`attention,gemm` as names; all where nothing is chosen."""
    if not text:
        return tuple(_SWITCH)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in _SWITCH:
            raise PlanError(f"--factors: there is no feature {name!r}, but {', '.join(_SWITCH)}")
    return names


def ablation_arms(features: Sequence[str], mode: Mode) -> tuple[Arm, ...]:
    """The baseline first: the plugin without these features, or with all of them.

    Only the given features are switched; the serving rules are the same in every arm.
    """

    def arm(name: str, on: Sequence[str]) -> Arm:
        switches = {_SWITCH[f]: "on" if f in on else "off" for f in features}
        return Arm(
            name,
            {"VLLM_AMDOPT": "1", **switches},
            expected_features=tuple(on) if len(on) == 1 and mode != "all-but-one" else (),
            unwanted_features=tuple(f for f in features if f not in on),
        )

    none, every = arm("none", ()), arm("all", features)
    alone = [arm(f"only-{name}", (name,)) for name in features]
    but_one = [
        arm(f"all-but-{name}", [other for other in features if other != name])
        for name in features
        if len(features) > 1
    ]
    if mode == "alone":
        return (none, *alone)
    if mode == "all-but-one":
        return (every, *(but_one or [none]))
    return (none, *alone, *([every, *but_one] if but_one else []))
