"""Starts real vLLM servers for the tests and the demo, talks to them over HTTP, and ends them.

It is not a load generator. Standard library only, so that the demo can report a missing vLLM in
words. Every server lives in a process session of its own, which is how all of its engine and
worker processes are found and ended, whatever happened to the one that started them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vllm_amdopt.bench import processes
from vllm_amdopt.bench.processes import end_session, prepare_child, session_members

CACHES = Path(__file__).resolve().parents[1] / ".cache"
"""Compiled kernels and graphs, shared by all servers of a checkout; `make clean` removes them."""

START_SECONDS = 300.0
"""For a slow shared machine; docs/startup_cost.md has what a start takes on an idle one."""

REQUEST_SECONDS = 300.0
STOP_SECONDS = 5.0
PORT_ATTEMPTS = 4

DEFAULT_ARGUMENTS: Mapping[str, str] = {
    "--max-model-len": "512",
    "--kv-cache-memory-bytes": "64M",
}
"""Small enough for any machine; an argument of the same name in `arguments` replaces one."""

QUIET_ENVIRONMENT: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class ServerError(RuntimeError):
    """The server did not start, died, or answered with an error; holds the end of its log."""


class PortTakenError(ServerError):
    """The server found its port in use."""


@dataclass(frozen=True)
class Completion:
    """One answer: the text, its token ids, and the log-probability of each token."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str


class Server:
    """`vllm serve MODEL` on a free loopback port, as a context manager.

    plugin: what follows `--plugin` on the command line; None leaves the flag away.
    arguments: further arguments of `vllm serve`.
    environment: added to the environment; an empty value removes the variable. VLLM_* variables
        of the caller are not passed on, so that a test means the same on every machine.
    folder: where the log goes; a temporary one by default, which is removed.
    log_name: the log's file name in the folder.
    port: tried first; another one is taken when it is in use.
    program: what stands before the model on the command line; a test of the launcher replaces it.
    """

    def __init__(
        self,
        model: Path,
        *,
        plugin: str | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        log_name: str = "server.log",
        port: int | None = None,
        program: Sequence[str] | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self._model = Path(model)
        self._name = f"{self._model.name}-{secrets.token_hex(4)}"
        self._plugin = plugin
        self._arguments = tuple(arguments)
        self._changes = dict(environment or {})
        self._given_folder = folder
        self._log_name = log_name
        self._wanted_port = port
        self._program = tuple(program or default_program())
        self._start_seconds = start_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self.port = 0
        self.seconds_to_ready = 0.0

    # --- start and stop -------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when the server answers; ServerError with the end of its log when it cannot."""
        if not self._model.is_dir():
            raise ServerError(f"there is no model directory {self._model}")
        self._folder = self._given_folder or Path(tempfile.mkdtemp(prefix="vllm-amdopt-server-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        for attempt in range(PORT_ATTEMPTS):
            self.port = choose_port(self._wanted_port if attempt == 0 else None)
            try:
                self._start_process()
                self._wait_until_ready(begin + self._start_seconds)
                self.seconds_to_ready = time.monotonic() - begin
                return
            except PortTakenError:
                self._end_processes()
                if attempt == PORT_ATTEMPTS - 1:
                    self.stop()
                    raise
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Ends every process of the server and removes a temporary folder; may be called twice."""
        self._end_processes()
        if self._given_folder is None and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _start_process(self) -> None:
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.process_environment(),
                start_new_session=True,
                preexec_fn=prepare_child,
            )

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._process is not None
        while True:
            code = self._process.poll()
            if code is not None:
                taken = "address already in use" in self.log.lower()
                kind = PortTakenError if taken else ServerError
                raise kind(self._failure(f"the server ended with exit code {code} at its start"))
            if self._is_ready():
                return
            if time.monotonic() > deadline:
                raise ServerError(
                    self._failure(f"the server was not ready within {self._start_seconds:.0f} s")
                )
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            self.get("/health", seconds=5.0)
            served = json.loads(self.get("/v1/models", seconds=5.0))
        except (OSError, ServerError, ValueError):
            return False
        # The name is unique to this object: whoever else answers on the port is not our server.
        return any(model.get("id") == self._name for model in served.get("data", ()))

    def _end_processes(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        end_session(process.pid)
        process.wait()

    def _failure(self, what: str) -> str:
        lines = self.log.splitlines()
        # The cause stands far above the end: each process adds its own traceback on the way out.
        errors = list(dict.fromkeys(m[1] for line in lines if (m := _ERROR_LINE.search(line))))
        shown = [*errors[:4], "...", *lines[-20:]] if errors else lines[-40:]
        text = "\n".join(f"  | {line}" for line in shown)
        return f"{what}; from its log {self.log_path}:\n{text}"

    # --- what is started ------------------------------------------------------------------------

    def command(self) -> list[str]:
        """The whole command line; defaults first, so that `arguments` may replace them."""
        given = {argument.partition("=")[0] for argument in self._arguments}
        command = [*self._program, str(self._model)]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--served-model-name", self._name]
        for name, value in DEFAULT_ARGUMENTS.items():
            if name not in given:
                command += [name, value]
        if "--enforce-eager" not in given and not inductor_can_compile():
            command.append("--enforce-eager")
        command += self._arguments
        if self._plugin is not None:
            command += ["--plugin", self._plugin]
        return command

    def process_environment(self) -> dict[str, str]:
        """The caller's environment without VLLM_*, with the quiet settings and the changes."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("VLLM_")
        }
        environment.update(QUIET_ENVIRONMENT)
        environment["VLLM_CACHE_ROOT"] = str(CACHES / "vllm")
        environment["TRITON_CACHE_DIR"] = str(CACHES / "triton")
        # "auto" pins a server to half of the cores and gives one memory node to each rank: on a
        # machine with one node, tensor parallelism would not start. The system schedules well.
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # On a CPU vLLM gives the one worker of a server a process of its own, so that OpenMP can be
        # bound there, unless this says otherwise; on a GPU it has none. It is a third of the start.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        environment.setdefault("OMP_NUM_THREADS", str(self._threads_per_rank()))
        for name, value in self._changes.items():
            if value:
                environment[name] = value
            else:
                environment.pop(name, None)
        return environment

    def _threads_per_rank(self) -> int:
        flags = ("--tensor-parallel-size", "-tp")
        ranks = 1
        for name, value in itertools.pairwise((*self._arguments, "")):
            if name in flags:
                ranks = int(value)
            elif name.partition("=")[0] in flags:
                ranks = int(name.partition("=")[2])
        return max(1, len(os.sched_getaffinity(0)) // ranks)

    # --- talking to it --------------------------------------------------------------------------

    @property
    def log_path(self) -> Path:
        assert self._folder is not None, "the server has not been started"
        return self._folder / self._log_name

    @property
    def log(self) -> str:
        """Everything the server and its processes wrote so far."""
        return self.log_path.read_text(errors="replace")

    def processes(self) -> list[int]:
        """The ids of all processes of the server, its engine and workers included."""
        return [] if self._process is None else session_members(self._process.pid)

    def get(self, path: str, seconds: float = REQUEST_SECONDS) -> str:
        return self._request(urllib.request.Request(self._url(path)), seconds)

    def complete(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 16,
        *,
        temperature: float = 0.0,
        **fields: object,
    ) -> Completion:
        """One completion; further fields of the request (`stop`, `seed`, …) pass through."""
        body = {
            "model": self._name,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "logprobs": 0,
            "return_token_ids": True,
            **fields,
        }
        request = urllib.request.Request(
            self._url("/v1/completions"),
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        choice: dict[str, Any] = json.loads(self._request(request, REQUEST_SECONDS))["choices"][0]
        return Completion(
            text=choice["text"],
            token_ids=tuple(choice["token_ids"]),
            logprobs=tuple(choice["logprobs"]["token_logprobs"]),
            finish_reason=choice["finish_reason"],
        )

    def complete_together(
        self, prompts: Sequence[str | Sequence[int]], max_tokens: int = 16, **fields: Any
    ) -> list[Completion]:
        """All prompts at once, one thread and connection each; answers in the order of prompts."""
        if not prompts:
            return []
        gate = threading.Barrier(len(prompts))

        def ask(prompt: str | Sequence[int]) -> Completion:
            gate.wait()
            return self.complete(prompt, max_tokens, **fields)

        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(ask, prompts))

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def _request(self, request: urllib.request.Request, seconds: float) -> str:
        try:
            # No proxy, whatever the environment says: the server is on this machine.
            with _OPENER.open(request, timeout=seconds) as response:
                return str(response.read().decode())
        except urllib.error.HTTPError as error:
            answer = error.read().decode(errors="replace")
            raise ServerError(f"HTTP {error.code} from {request.selector}: {answer}") from None
        except OSError as error:
            process = self._process
            if process is not None and not isinstance(error, ConnectionRefusedError):
                # A connection breaks a moment before the process that held it is gone.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(1.0)
                    died = self._failure(f"the server died (exit code {code})")
                    raise ServerError(died) from error
            raise


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_ERROR_LINE = re.compile(r"(?:^|[\s\]])((?:\w+\.)*[A-Z]\w*(?:Error|Exception|Exit): .*)")


def default_program() -> tuple[str, ...]:
    """`vllm serve` of the environment that runs this."""
    return (str(Path(sys.executable).with_name("vllm")), "serve")


def choose_port(wanted: int | None = None) -> int:
    """`wanted` if nobody has it, else a port that the system says is free."""
    port = processes.choose_port(wanted)
    if port is None:
        raise ServerError("the system has no free port on 127.0.0.1")
    return port


@functools.cache
def inductor_can_compile() -> bool:
    """Whether torch.compile can build for the CPU here: a C++ compiler and Python's headers.

    vLLM compiles by default and dies without them; it serves without compilation just as right.
    """
    compiler = os.environ.get("CXX") or next(
        (name for name in ("g++", "clang++", "c++") if shutil.which(name)), None
    )
    if compiler is None:
        return False
    include = sysconfig.get_path("include")
    done = subprocess.run(
        [*compiler.split(), "-x", "c++", "-fsyntax-only", f"-I{include}", "-"],
        input="#include <Python.h>\n#include <vector>\n",
        text=True,
        capture_output=True,
    )
    return done.returncode == 0
