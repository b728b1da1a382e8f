"""The layers of the package, enforced on the syntax tree: imports go one way and do nothing.

The tables below are the rules; docs/architecture.md explains them. Imports inside functions and
under TYPE_CHECKING count, and so do `importlib.import_module("name")` with a literal name.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vllm_amdopt"
EVERYTHING = "*"


@dataclass(frozen=True)
class Layer:
    """What the modules of one layer may import: third-party packages, and layers of ours."""

    third_party: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()


LAYERS = {
    "": Layer(),
    # One layer in two modules: facts, and reading the machine. `amdsmi` is optional and part of
    # ROCm: asked for the GPUs where it is there, never required.
    "hardware": Layer(ours=("detection",)),
    "detection": Layer(third_party=("amdsmi",), ours=("hardware",)),
    "patching": Layer(ours=("patching",)),
    # What every measuring tool writes, and how secrets stay out of it.
    "redaction": Layer(),
    "run_record": Layer(ours=("redaction",)),
    "policy": Layer(ours=("policy", "hardware")),
    "kernels": Layer(third_party=("triton",), ours=("kernels",)),
    "ops": Layer(third_party=("torch",), ours=("ops", "kernels", "hardware")),
    "codegen": Layer(third_party=("triton",), ours=("codegen", "kernels", "hardware")),
    "emulator": Layer(third_party=("numpy",), ours=("emulator",)),
    "integration": Layer(
        third_party=("torch", "vllm"),
        ours=(
            "integration",
            "ops",
            "kernels",
            "policy",
            "hardware",
            "detection",
            "emulator",
            "codegen",
            "patching",
        ),
    ),
    "bench": Layer(third_party=(EVERYTHING,), ours=("bench", "policy", "hardware", "run_record")),
    # Arms, servers and Student's distribution are what `bench` says they are.
    "accuracy": Layer(
        third_party=(EVERYTHING,), ours=("accuracy", "bench", "policy", "hardware", "run_record")
    ),
    "commands": Layer(
        ours=(
            "commands",
            "accuracy",
            "bench",
            "policy",
            "hardware",
            "detection",
            "emulator",
            "patching",
            "redaction",
            "run_record",
        )
    ),
    "cli": Layer(ours=(EVERYTHING,)),
}

_LAUNCH_HOOK = Layer(third_party=("numpy", "triton", "torch"), ours=("emulator",))
MODULE_EXCEPTIONS = {
    # The launch hook stands between Triton's launcher and PyTorch's memory.
    "emulator.launch": _LAUNCH_HOOK,
    "emulator.pretend_cuda": _LAUNCH_HOOK,
    # Runs the kernels in the emulator to count what they move.
    "codegen.traffic": Layer(
        third_party=("torch", "triton"),
        ours=("codegen", "kernels", "hardware", "ops", "emulator"),
    ),
    # Chooses between Triton's interpreter and compiler before any kernel is imported.
    "integration.cpu_engine": Layer(
        third_party=(*LAYERS["integration"].third_party, "triton"), ours=LAYERS["integration"].ours
    ),
}

AT_TOP_OF_CLI = ("", "hardware", "policy")
"""What cli may import when it is imported: the layers that need the standard library only."""

MAY_READ_ENVIRONMENT = ("cli", "integration.plugin")
MAY_NAME_A_VLLM_VERSION = (
    "integration.compat",
    "policy.attention_backends",
    "policy.compatibility",
    "policy.features",
    "policy.moe_selection",
    "policy.rules",
)
"""`compat` decides by version; the registries and the tables of vLLM's own backends declare the
range that each record holds for."""

LINES_PER_FILE = 500

VERSION = r"(?:[<>=!~]=?\s*)?0\.[23]\d(?:\.\d+)*(?:rc\d+)?"
VERSION_TEXT = re.compile(rf"{VERSION}(?:\s*,\s*{VERSION})*")


def layer_of(module: str) -> str:
    """`policy.plan` -> `policy`; the package itself is the layer ""."""
    return module.partition(".")[0]


def is_under(module: str, parent: str) -> bool:
    return module == parent or module.startswith(parent + ".")


# --- reading a module ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One imported module: its full name, the line, and whether it is imported at import time."""

    name: str
    line: int
    at_top: bool


def imports_of(tree: ast.Module, module: str, is_package: bool, known: set[str]) -> list[Import]:
    """Every import of a module (`module` and `known` are names inside the package)."""
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["vllm_amdopt", *module.split(".")] if module else ["vllm_amdopt"]
                keep = len(here) - node.level + (1 if is_package else 0)
                base = ".".join([*here[:keep], *([node.module] if node.module else [])])
            # `from package import name` imports a module where `name` is one.
            for alias in node.names:
                inside = f"{base}.{alias.name}".removeprefix("vllm_amdopt.")
                names.append(f"{base}.{alias.name}" if inside in known else base)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            names = [
                argument.value
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
        found += [Import(name, node.lineno, id(node) not in inner) for name in names]
    return found


def docstrings_of(tree: ast.Module) -> set[int]:
    """The ids of the nodes that are bare strings: docstrings and the like."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


# --- the rules ----------------------------------------------------------------------------------


def import_violations(
    tree: ast.Module, module: str, is_package: bool, known: set[str]
) -> Iterator[str]:
    layer = MODULE_EXCEPTIONS.get(module) or LAYERS.get(layer_of(module))
    if layer is None:
        yield f"{module}: its layer {layer_of(module)!r} is not in LAYERS: say what it may import"
        return
    for imported in imports_of(tree, module, is_package, known):
        top = imported.name.partition(".")[0]
        where = f"{module or '__init__'}:{imported.line}"
        if top == "vllm_amdopt":
            target = layer_of(imported.name.partition(".")[2])
            if target and EVERYTHING not in layer.ours and target not in layer.ours:
                yield f"{where}: imports our {target}, and may import {layer.ours or 'nothing'}"
            if module == "cli" and imported.at_top and target not in AT_TOP_OF_CLI:
                yield f"{where}: imports {target} at the top; inside a function, or --help is slow"
        elif (
            top not in sys.stdlib_module_names
            and EVERYTHING not in layer.third_party
            and top not in layer.third_party
        ):
            yield f"{where}: imports {top}, and may import {layer.third_party or 'nothing'}"


def environment_violations(tree: ast.Module, module: str) -> Iterator[str]:
    if module in MAY_READ_ENVIRONMENT:
        return
    forbidden = ("environ", "environb", "getenv", "putenv", "unsetenv")
    for node in ast.walk(tree):
        direct = isinstance(node, ast.Attribute) and node.attr in forbidden
        if direct and ast.unparse(node.value) == "os":
            yield f"{module}:{node.lineno}: {ast.unparse(node)}; take a mapping as an argument"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            for alias in node.names:
                if alias.name in forbidden:
                    yield f"{module}:{node.lineno}: os.{alias.name}; take a mapping as an argument"


def version_violations(tree: ast.Module, module: str) -> Iterator[str]:
    if any(is_under(module, allowed) for allowed in MAY_NAME_A_VLLM_VERSION):
        return
    bare = docstrings_of(tree)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in bare
            and VERSION_TEXT.fullmatch(node.value.strip())
        ):
            yield f"{module}:{node.lineno}: names version {node.value!r}; integration/compat does"
        if isinstance(node, ast.ImportFrom | ast.Import) and layer_of(module) == "integration":
            asks = isinstance(node, ast.ImportFrom) and (
                node.module == "vllm.version"
                or (node.module == "vllm" and any(a.name == "__version__" for a in node.names))
            )
            if asks:
                yield f"{module}:{node.lineno}: asks for vLLM's version; integration/compat does"


def effect_violations(tree: ast.Module, module: str) -> Iterator[str]:
    """Calls for their effect while the module is imported."""
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield f"{module}:{node.lineno}: {ast.unparse(node)[:60]} runs at import"


def violations(source: str, module: str, is_package: bool, known: set[str]) -> list[str]:
    """All broken rules of one module, as sentences."""
    tree = ast.parse(source)
    return [
        *import_violations(tree, module, is_package, known),
        *environment_violations(tree, module),
        *version_violations(tree, module),
        *effect_violations(tree, module),
    ]


# --- the tests ----------------------------------------------------------------------------------


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(PACKAGE.rglob("*.py"))
KNOWN = {module_name(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_keeps_to_its_layer(path: Path) -> None:
    broken = violations(path.read_text(), module_name(path), path.name == "__init__.py", KNOWN)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    "path",
    sorted([*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_file_is_short_enough_to_read(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= LINES_PER_FILE, f"{lines} lines; split it by what it is about"


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        pytest.param("policy.plan", "import torch", "imports torch", id="third-party"),
        pytest.param("policy.plan", "def f():\n  import torch", "imports torch", id="in-function"),
        pytest.param(
            "policy.plan",
            "from importlib import import_module\nimport_module('torch.nn')",
            "imports torch",
            id="import-module",
        ),
        pytest.param("policy.plan", "from vllm_amdopt.ops import x", "our ops", id="upwards"),
        pytest.param("policy.plan", "from vllm_amdopt import ops", "our ops", id="from-package"),
        pytest.param("policy.plan", "from .. import ops", "our ops", id="relative"),
        pytest.param("policy.plan", "from ..ops import x", "our ops", id="relative-module"),
        pytest.param("kernels.a", "import torch", "imports torch", id="kernel-with-torch"),
        pytest.param("ops.a", "import vllm.envs", "imports vllm", id="vllm-outside-integration"),
        pytest.param(
            "integration.a", "from vllm_amdopt.cli import main", "our cli", id="cli-from-below"
        ),
        pytest.param("bench.a", "from vllm_amdopt import integration", "our integr", id="bench"),
        pytest.param("cli", "import torch", "imports torch", id="cli-third-party"),
        pytest.param("commands.a", "import torch", "imports torch", id="command-third-party"),
        pytest.param("hardware", "import amdsmi", "imports amdsmi", id="facts-from-amdsmi"),
        pytest.param(
            "policy.plan", "from vllm_amdopt import detection", "our detection", id="policy-reads"
        ),
        pytest.param("cli", "from vllm_amdopt import codegen", "at the top", id="cli-not-lazy"),
        pytest.param("surprise.a", "", "not in LAYERS", id="unknown-layer"),
        pytest.param("", "from vllm_amdopt import policy", "our policy", id="package-itself"),
        pytest.param("ops.a", "import os\nos.environ['A']", "os.environ", id="environ"),
        pytest.param("ops.a", "import os\nos.getenv('A')", "os.getenv", id="getenv"),
        pytest.param("ops.a", "from os import environ", "os.environ", id="environ-imported"),
        pytest.param(
            "integration.platform", "import os\nos.environ", "os.environ", id="environ-near-plugin"
        ),
        pytest.param("integration.a", "x = '0.32.0'", "names version", id="version"),
        pytest.param("integration.a", "x = '>=0.30, <0.34'", "names version", id="version-range"),
        pytest.param(
            "integration.a", "from vllm import __version__", "vLLM's version", id="asks-version"
        ),
        pytest.param("ops.a", "import logging\nlogging.info('x')", "runs at import", id="effect"),
    ],
)
def test_synthetic_violation_is_found(module: str, source: str, complaint: str) -> None:
    known = {"ops", "policy", "policy.plan", "codegen", "integration", "cli", "detection"}
    assert any(complaint in broken for broken in violations(source, module, False, known))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("policy.plan", "import json\nfrom vllm_amdopt import hardware", id="policy"),
        pytest.param("policy.plan", "from vllm_amdopt import __version__", id="own-version"),
        pytest.param("policy.plan", "from .conditions import Condition", id="relative"),
        pytest.param("cli", "import os\nos.environ\ndef f():\n  from . import codegen", id="cli"),
        pytest.param("integration.compat.supported", "x = '0.32.0'", id="compat"),
        pytest.param("integration.a", "def f():\n  '''0.32.0'''", id="version-in-docstring"),
        pytest.param("emulator.launch", "import torch, triton, numpy", id="launch-hook"),
        pytest.param("integration.plugin", "import os\nos.environ", id="plugin"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    known = {"hardware", "policy", "policy.plan", "policy.conditions", "codegen", "cli"}
    assert violations(source, module, False, known) == []


def test_every_layer_in_the_table_is_spelled_as_a_layer() -> None:
    named = {name for layer in LAYERS.values() for name in layer.ours}
    assert named <= {*LAYERS, EVERYTHING}
