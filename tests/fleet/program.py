"""Asks vLLM what it would run on a simulated AMD machine, for many models in one process.

A program for rig.py, not a test. It imports vLLM once, on one simulated machine and in one arm
(stock, or with the plugin: what the environment says), and forks for each model and layout, so that
nothing that vLLM caches reaches the next one. One line of JSON per combination on stdout.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from tests.fleet import combination, simulated_machine


def prepare(gfx: str, aiter: bool) -> None:
    """Put the simulated machine in place and import what every combination needs."""
    simulated_machine.pretend_amd_machine(gfx)
    if aiter:
        simulated_machine.pretend_aiter()
    simulated_machine.pretend_rocm_image()
    simulated_machine.without_compiled_kernels()
    simulated_machine.without_cpu_build()
    from vllm import platforms

    assert platforms.current_platform.is_rocm()
    simulated_machine.pretend_triton()
    simulated_machine.pretend_torchvision()
    simulated_machine.pretend_compiled_ops()
    simulated_machine.pretend_devices(gfx)
    simulated_machine.pretend_versions(aiter)
    inspect_models_in_this_process()


def inspect_models_in_this_process() -> None:
    """Let vLLM inspect a model class here instead of in a subprocess of ten seconds each.

    vLLM's `_ModelInfo.from_model_cls` runs all the same; the subprocess only keeps the import of
    a model's module, which may start a GPU, out of the main process. There is no GPU here.
    """
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda function: function()


def import_model(architecture: str) -> None:
    """Import a model's module before the forks, which then share it.

    What goes wrong here goes wrong again in the fork, and is told there.
    """
    from vllm.model_executor.models.registry import ModelRegistry

    model = ModelRegistry.models.get(architecture)
    if model is not None and hasattr(model, "load_model_cls"):
        with contextlib.suppress(Exception):
            model.load_model_cls()


def answers(question: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The record of each combination that `question` asks for."""
    import vllm

    for name, path in question["models"].items():
        config = json.loads(Path(path, "config.json").read_text(encoding="utf-8"))
        for architecture in config.get("architectures", ()):
            import_model(architecture)
        for size in question["tensor_parallel"]:
            for arm, variables in question["arms"].items():
                engine = {"tensor_parallel_size": size, **question["engine"]}
                answer = in_a_fork(path, engine, variables)
                share_imports(answer.pop("imported", ()))
                key = {"model": name, "tensor_parallel": size, "arm": arm}
                yield {**key, "vllm": vllm.__version__, **answer}


def share_imports(names: Iterable[str]) -> None:
    """Import what a fork had to import, so that the next ones need not: most of their time."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def set_variables(variables: dict[str, str]) -> None:
    """Set vLLM's variables of one arm, and let its snapshot of AITER's switches see them."""
    from vllm._aiter_ops import rocm_aiter_ops

    os.environ.update(variables)
    rocm_aiter_ops.refresh_env_variables()


def in_a_fork(path: str, engine: dict[str, Any], variables: dict[str, str]) -> dict[str, Any]:
    """The record of one combination, made in a child that ends with it."""
    sys.stdout.flush()
    gc.freeze()  # or the collector touches, and so copies, every page that the child shares
    reading, writing = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.close(reading)
        gc.disable()
        try:
            with redirect_stdout(io.StringIO()):
                known = set(sys.modules)
                set_variables(variables)
                record = combination.record(path, engine)
                record["imported"] = [name for name in sys.modules if name not in known]
            text = json.dumps(record)
        except BaseException:
            text = json.dumps({"outcome": "rig", "error": traceback.format_exc()})
        with os.fdopen(writing, "w") as stream:
            stream.write(text)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    if not text:
        text = json.dumps({"outcome": "rig", "error": f"the child ended with status {status}"})
    return {**json.loads(text), "seconds": round(time.perf_counter() - started, 3)}


def main() -> None:
    """Read the question (JSON) from stdin, print answers (JSON lines)."""
    question: dict[str, Any] = json.loads(sys.stdin.read())
    stdout = sys.stdout
    with redirect_stdout(io.StringIO()):
        prepare(question["gfx"], question["aiter"])
    for answer in answers(question):
        print(json.dumps(answer), file=stdout, flush=True)


if __name__ == "__main__":
    main()
