"""The command `vllm-amdopt`: prints what the policy says; runs no model and touches no GPU.

Everything but argparse is imported by the command that needs it, so that `--help` is instant.
Exit codes: 0 done; 1 a check failed; 2 the command line, the environment or the model's
configuration is at fault, said in one sentence on stderr.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one sentence for them."""


class _Parser(argparse.ArgumentParser):
    """argparse, saying what is wrong in one sentence instead of after a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`{self.prog} --help` shows what there is)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse, after --help or --version
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:  # the reader, for instance `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (UsageError, ValueError) as error:  # SwitchError and ModelConfigError are ValueErrors
        print(f"vllm-amdopt: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except Exception as error:
        if os.environ.get("VLLM_AMDOPT_STRICT", "") in ("", "0"):
            print(
                f"vllm-amdopt: unexpected {type(error).__name__}: {error}; this is a fault of "
                "vllm-amdopt, please report it with what VLLM_AMDOPT_STRICT=1 prints",
                file=sys.stderr,
            )
            return 1
        raise


def _one_line(text: str) -> str:
    """What the user gave may hold line breaks and control characters: shown as spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["codegen"]:  # its options are its own
        return _codegen(arguments[1:])
    options = _parser(arguments[:1]).parse_args(_joined(arguments))
    if options.command is None:
        raise UsageError("no command given (`vllm-amdopt --help` shows what there is)")
    if options.command == "docs":
        return _docs(options)
    if options.command == "features":
        return _features(options)
    options.command_line = arguments
    module, _, run = COMMANDS[options.command]
    code: int = getattr(_command(module), run)(options, dict(os.environ))
    return code


def _joined(arguments: list[str]) -> list[str]:
    """`--serve-args --enforce-eager` as one word: argparse takes the value for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in ("--serve-args", "--a-serve-args", "--b-serve-args"):
            joined[-1] = f"{joined[-1]}={argument}"
        else:
            joined.append(argument)
    return joined


COMMANDS = {
    "explain": ("explain", "add_explain_arguments", "run_explain"),
    "diff": ("explain", "add_diff_arguments", "run_diff"),
    "doctor": ("doctor", "add_arguments", "run"),
    "collect-env": ("collect_env", "add_arguments", "run"),
    "emulate-report": ("emulate_report", "add_arguments", "run"),
    "bench": ("bench", "add_arguments", "run"),
    "report": ("report", "add_arguments", "run"),
    "compare": ("compare", "add_arguments", "run"),
    "patches": ("patches", "add_arguments", "run"),
    "accuracy": ("accuracy", "add_arguments", "run"),
}
"""Command -> its module under `commands`, what adds its options, what runs it."""

_HELP = {
    "explain": (
        "what would be set for a model on a GPU, by which rule, and why",
        "Print what would be set for a model, by which rule, why and with which evidence, what "
        "vLLM would select without and with it, the memory on each GPU, and the command to run. "
        "Reads the switches VLLM_AMDOPT* from the environment. Without --gpu the machine is this "
        "one; without a GPU here it is the virtual GPU that the CPU engine provides.",
    ),
    "diff": (
        "what differs between two plans: two GPUs, two versions, vLLM alone",
        "Print what differs between the plan that the options describe and another one.",
    ),
    "doctor": (
        "what is wrong on this machine, and how to mend it",
        "Check this machine, what is installed and the environment. Exit code 1 if something has "
        "to be mended.",
    ),
    "collect-env": (
        "what a report of a fault needs to say about this machine",
        "Print what `vllm collect-env` leaves out on ROCm. Secrets are left out.",
    ),
    "emulate-report": (
        "what an emulated run executed: by kernel, class, bytes and source line",
        "Print what a run on the CPU engine gfx942 or gfx950 executed. It was recorded if "
        "VLLM_AMDOPT_EMULATE_REPORT named a file or directory.",
    ),
    "bench": (
        "compare servers: stock and plugin in turns, with intervals",
        "Measure servers against each other and write run records. `vllm-amdopt bench COMMAND "
        "--help` shows the options of each.",
    ),
    "report": (
        "run records as a page, a text, tables and figures",
        "Write report.html, which needs nothing else, report.md, rows.csv and effects.csv, "
        "junit.xml and figures from the run records in a directory.",
    ),
    "compare": (
        "what changed between two run records",
        "Compare what two sessions measured. Exit code 1 if the candidate lost against its "
        "baseline by more than the margin; 2 if the records cannot be compared, with the reason.",
    ),
    "patches": (
        "small diffs for the installed vLLM: list, check, apply, reverse",
        "List, check, apply and reverse the diffs for vLLM that stand in patches/. All that is "
        "named is changed, or nothing is; reversing gives the original bytes.",
    ),
    "accuracy": (
        "whether the plugin answers as stock vLLM does: logits, and tasks",
        "Compare what arms answer and write a run record. `vllm-amdopt accuracy CHECK --help` "
        "shows the options of each check.",
    ),
}


def _command(module: str) -> Any:
    from importlib import import_module

    return import_module(f"vllm_amdopt.commands.{module}")


def _parser(asked: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; only the command that is asked for is imported for its options."""
    from vllm_amdopt import __version__

    parser = _Parser(
        prog="vllm-amdopt",
        description="What vllm-amdopt does with a model on a machine, and why.",
        epilog="In vLLM: `vllm serve MODEL --plugin amdopt`, or VLLM_AMDOPT=1 in the environment.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vllm-amdopt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    for name, (module, add_arguments, _) in COMMANDS.items():
        short, long = _HELP[name]
        command = commands.add_parser(name, help=short, description=long, allow_abbrev=False)
        if [name] == list(asked):
            getattr(_command(module), add_arguments)(command)

    features = commands.add_parser(
        "features", help="list features, serving rules and their switches", allow_abbrev=False
    )
    features.add_argument("--json", action="store_true", help="as JSON")

    docs = commands.add_parser(
        "docs",
        help="write the generated pages of a checkout, or check that they are fresh",
        allow_abbrev=False,
    )
    action = docs.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="exit 1 if a page is stale")
    action.add_argument("--write", action="store_true", help="write the pages")
    docs.add_argument("--root", metavar="DIR", type=Path, help="the checkout (default: this one)")

    # Only listed here: `_run` hands its arguments on before they are parsed.
    commands.add_parser("codegen", help="compile the kernels for gfx942 and gfx950, without a GPU")
    return parser


def _features(options: argparse.Namespace) -> int:
    from vllm_amdopt.policy.render import features_record, render_features

    if options.json:
        import json

        print(json.dumps(features_record(), indent=2))
    else:
        print(render_features())
    return 0


def _docs(options: argparse.Namespace) -> int:
    from vllm_amdopt.patching.manifest import load_manifest
    from vllm_amdopt.patching.page import README, readme_page
    from vllm_amdopt.policy.render import PAGES

    root: Path = options.root or Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        raise UsageError(f"{root} is not a checkout of vllm-amdopt: give one with --root")
    stale: list[str] = []
    patches = load_manifest()
    pages = {**PAGES, README: lambda: readme_page(patches)}
    for name, render in pages.items():
        path, text = root / name, render()
        try:
            fresh = path.read_text(encoding="utf-8") == text
        except (OSError, UnicodeDecodeError):
            fresh = False
        if fresh:
            continue
        stale.append(name)
        if options.write:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    if options.write:
        print(f"written: {', '.join(stale)}" if stale else "all pages were fresh")
        return 0
    if stale:
        print(f"stale: {', '.join(stale)}; `vllm-amdopt docs --write` renews them", file=sys.stderr)
        return 1
    print("all pages are fresh")
    return 0


def _codegen(arguments: list[str]) -> int:
    from importlib import import_module

    try:
        codegen = import_module("vllm_amdopt.codegen")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"codegen needs the package {error.name}, which is not installed: "
            "install vllm-amdopt[cpu] or the triton that belongs to your torch"
        ) from error
    code: int | None = codegen.main(arguments)
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
