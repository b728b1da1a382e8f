"""The options of `bench ab`, `bench aa` and `bench ablate`, and the plan that they describe."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import cast

from vllm_amdopt.bench.ablation import MODES, Mode, ablation_arms, chosen_features
from vllm_amdopt.bench.plan import (
    Arm,
    Kind,
    Level,
    Plan,
    PlanError,
    make_levels,
    parse_arm,
    parse_claim,
    parse_share,
    parse_slo,
    parse_workload,
    words,
)
from vllm_amdopt.bench.presets import Preset, preset
from vllm_amdopt.commands.bench_client import whole_numbers

STOCK = "stock:VLLM_AMDOPT=0"
PLUGIN = "plugin:VLLM_AMDOPT=1"


def add_ab_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench ab`."""
    _add_arm(parser, "--a", f"the first arm, the baseline (default: {STOCK})")
    _add_arm(parser, "--b", f"the second arm (default: {PLUGIN})")
    parser.add_argument(
        "--expect-log",
        metavar="REGEX",
        help="must match in the log of the second arm and not in that of the first: shows that "
        "the treatment was there, where it is not the plugin",
    )
    add_common(parser)


def add_aa_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench aa`."""
    _add_arm(parser, "--a", f"the arm (default: {STOCK})")
    add_common(parser)


def add_ablate_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench ablate`."""
    parser.add_argument("--factors", metavar="NAME,NAME", help="features (default: all)")
    parser.add_argument("--mode", choices=MODES, default="alone", help="(default: alone)")
    add_common(parser)


def _add_arm(parser: argparse.ArgumentParser, option: str, text: str) -> None:
    parser.add_argument(option, metavar="NAME:VAR=VALUE,...", help=text)
    parser.add_argument(
        f"{option}-serve-args", metavar="ARGS", default="", help="of `vllm serve`, in this arm only"
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """What all serving measurements have."""
    parser.add_argument("--model", metavar="MODEL", help="directory or name of the model")
    parser.add_argument("--preset", metavar="NAME", help="loads that somebody published")
    parser.add_argument("--serve-args", metavar="ARGS", help="of `vllm serve`, in every arm")
    load = parser.add_argument_group("loads")
    load.add_argument(
        "--workload",
        metavar="DATASET:IN/OUT",
        action="append",
        default=[],
        help="prompt and answer tokens, as random:1024/128; may be repeated",
    )
    load.add_argument("--concurrency", metavar="N,N", help="requests in flight, as 1,16,64")
    load.add_argument("--request-rate", metavar="R,R", help="arrivals per second, as 1,2.5")
    load.add_argument("--prompts", metavar="N", type=int, help="requests of each run")
    load.add_argument("--prompts-per-conc", metavar="N", type=int, default=10)
    load.add_argument("--warmup-per-conc", metavar="N", type=int, default=2)
    design = parser.add_argument_group("design")
    design.add_argument("--blocks", metavar="N", type=int, help="launches of each arm")
    design.add_argument("--repetitions", metavar="N", type=int, default=1, help="in one launch")
    design.add_argument("--seed", metavar="N", type=int, default=0, help="of prompts and orders")
    design.add_argument(
        "--no-pre-block", action="store_true", help="no first launches to fill the caches"
    )
    design.add_argument("--retries", metavar="N", type=int, default=1, help="of a spoiled block")
    design.add_argument("--cooldown", metavar="TIME", default="0s", help="after each launch")
    judging = parser.add_argument_group("judging")
    judging.add_argument("--primary", metavar="METRIC@LOAD", help="what decides")
    judging.add_argument(
        "--gate", metavar="METRIC@LOAD", action="append", default=[], help="what else must not fall"
    )
    judging.add_argument("--margin", metavar="SHARE", default="1%", help="(default: 1%%)")
    judging.add_argument("--slo", metavar="LIMITS", help="as itl_p99=50,ttft_p99=2000 (ms)")
    judging.add_argument("--require-conclusive", action="store_true", help="exit code 3 if not")
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--gpus", metavar="auto|0,1|none", default="auto", help="locked during the run"
    )
    machine.add_argument("--wait-gpus", metavar="TIME", default="0s", help="until they are free")
    machine.add_argument("--port", metavar="N", type=int, help="tried first")
    machine.add_argument("--ready-timeout", metavar="TIME", default="30m", help="of a server")
    machine.add_argument("--run-timeout", metavar="TIME", default="30m", help="of one run")
    machine.add_argument("--min-free-disk", metavar="MIB", type=int, default=512)
    running = parser.add_argument_group("running")
    running.add_argument("--out", metavar="DIR", type=Path, help="(default: runs/KIND-MODEL)")
    running.add_argument("--resume", action="store_true", help="go on with the run in --out")
    running.add_argument(
        "--allow-drift", action="store_true", help="resume although the machine changed"
    )
    running.add_argument("--budget", metavar="TIME", help="begin no block that would end later")
    running.add_argument("--dry-run", action="store_true", help="print what would be done")
    running.add_argument(
        "--progress", choices=("auto", "terminal", "plain", "json", "none"), default="auto"
    )
    running.add_argument(
        "--serve-program",
        metavar="COMMAND",
        help="what stands before the model (default: this environment's `vllm serve`)",
    )


# --- the plan -----------------------------------------------------------------------------------


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan; PlanError where the options cannot be one."""
    chosen = preset(options.preset) if options.preset else None
    model = options.model or (chosen.model if chosen else None)
    if not model:
        raise PlanError("--model is missing")
    if options.retries < 0:
        raise PlanError("--retries counts from 0")
    plan = Plan(
        kind=_KINDS[options.bench_command],
        model=model,
        arms=_arms(options, chosen),
        levels=_levels(options, chosen),
        serve_arguments=(
            words(options.serve_args, "--serve-args")
            if options.serve_args is not None
            else (chosen.serve_arguments if chosen else ())
        ),
        blocks=options.blocks if options.blocks is not None else (chosen.blocks if chosen else 6),
        repetitions=options.repetitions,
        seed=options.seed,
        pre_block=not options.no_pre_block,
        gated=tuple(parse_claim(text, "--gate") for text in options.gate)
        or (chosen.gated if chosen and not _own_loads(options) else ()),
        margin=parse_share(options.margin, "--margin"),
        slo=parse_slo(options.slo) if options.slo else dict(chosen.slo if chosen else {}),
        treatment_pattern=getattr(options, "expect_log", None),
        preset=options.preset,
    )
    primary = (
        parse_claim(options.primary, "--primary")
        if options.primary
        else (chosen.primary if chosen and not _own_loads(options) else None)
    )
    return replace(plan, primary=primary) if primary else plan


_KINDS: dict[str, Kind] = {
    "ab": "serving_ab",
    "aa": "serving_aa",
    "ablate": "serving_ablation",
}


def _arms(options: argparse.Namespace, chosen: Preset | None) -> tuple[Arm, ...]:
    if options.bench_command == "ablate":
        return ablation_arms(chosen_features(options.factors), cast(Mode, options.mode))
    first = parse_arm(options.a or STOCK, options.a_serve_args, "--a")
    if not options.a and chosen and chosen.baseline:
        first = replace(first, environment=dict(chosen.baseline))
    if options.bench_command == "aa":
        return (first, replace(first, name=f"{first.name}-again"))
    second = parse_arm(options.b or PLUGIN, options.b_serve_args, "--b")
    return (first, second)


def _own_loads(options: argparse.Namespace) -> bool:
    return bool(options.workload or options.concurrency or options.request_rate)


def _levels(options: argparse.Namespace, chosen: Preset | None) -> tuple[Level, ...]:
    if chosen is not None and not _own_loads(options):
        return chosen.levels
    if not options.workload:
        raise PlanError("--workload is missing, for example random:1024/128 (or a --preset)")
    if not options.concurrency and not options.request_rate:
        raise PlanError("--concurrency or --request-rate is missing, for example 1,16,64")
    return make_levels(
        [parse_workload(text) for text in options.workload],
        whole_numbers(options.concurrency, "--concurrency") if options.concurrency else (),
        _rates(options.request_rate) if options.request_rate else (),
        prompts=options.prompts,
        prompts_per_concurrency=options.prompts_per_conc,
        warmup_per_concurrency=options.warmup_per_conc,
    )


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise PlanError(f"--request-rate {text!r}: write numbers, for example 1,2.5") from None
