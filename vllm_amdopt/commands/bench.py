"""`vllm-amdopt bench ...`: the measuring commands, listed here and each in its own module."""

import argparse
from collections.abc import Mapping
from importlib import import_module
from typing import Any

COMMANDS = {
    "ab": (
        "bench_serving",
        "compare two servers: launched in turns, paired, with intervals",
        "Launch the servers of two arms in turns (ABBA), put the same loads on both with "
        "`vllm bench serve`, and write a run record. Exit code 0: no regression shown; 1: a "
        "regression; 2: the command line or the environment; 3: inconclusive (with "
        "--require-conclusive); 4: the measurement does not count; 5: the GPUs are in use; 130: "
        "interrupted, --resume goes on.",
    ),
    "aa": (
        "bench_serving",
        "compare an arm with itself: what this machine's noise is",
        "As `bench ab` with the same arm twice: what it shows is noise. Exit codes as there.",
    ),
    "ablate": (
        "bench_serving",
        "each feature alone, or all but one",
        "As `bench ab` with an arm for each feature of the plugin, against the plugin without "
        "them. Exit codes as there.",
    ),
    "startup": (
        "bench_startup",
        "how long a server takes to start, by stage, cold and warm",
        "Start the servers of two arms in turns and divide each start into stages: imports, "
        "configuration, weights, memory profiling, compilation, graph capture, warm-up, first "
        "token. Exit codes as `bench ab`.",
    ),
    "calibrate-client": (
        "bench_client",
        "how fast the load generator is by itself on this machine",
        "Run `vllm bench serve` against a server that computes nothing. What it reaches is the "
        "most that can be measured here; `bench ab` compares its numbers with it.",
    ),
}
"""Command -> module under `commands`, short and long help. The module has `add_NAME_arguments`
and `run_NAME`, with - as _."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands with all their options."""
    commands = parser.add_subparsers(
        dest="bench_command", metavar="COMMAND", required=True, parser_class=type(parser)
    )
    for name, (module, short, long) in COMMANDS.items():
        command = commands.add_parser(name, help=short, description=long, allow_abbrev=False)
        getattr(_module(module), f"add_{name.replace('-', '_')}_arguments")(command)


def run(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Run the one that was asked for; its exit code."""
    name: str = options.bench_command
    module = _module(COMMANDS[name][0])
    code: int = getattr(module, f"run_{name.replace('-', '_')}")(options, environment)
    return code


def _module(name: str) -> Any:
    return import_module(f"vllm_amdopt.commands.{name}")
