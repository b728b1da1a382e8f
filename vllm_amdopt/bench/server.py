"""Starts the server of one arm, asks it about itself, and ends all of its processes.

It sends no load and judges nothing. What goes wrong is a LaunchError whose sentence holds what the
server itself said.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vllm_amdopt.bench.processes import (
    choose_port,
    end_session,
    prepare_child,
    session_members,
)

PORT_ATTEMPTS = 4
STOP_SECONDS = 30.0

Failure = Literal["error", "unsupported"]


class LaunchError(RuntimeError):
    """The server did not come up, or died. `kind` becomes the status of its rows."""

    def __init__(self, sentence: str, kind: Failure = "error") -> None:
        super().__init__(sentence)
        self.kind: Failure = kind


def default_program() -> tuple[str, ...]:
    """`vllm serve` of the environment that runs this, or else the one on PATH."""
    beside = Path(sys.executable).with_name("vllm")
    return (str(beside) if beside.is_file() else "vllm", "serve")


@dataclass(frozen=True)
class ServerSettings:
    """How servers of this run are started, whichever the arm.

    `base_environment`: the caller's, complete. `program`: what stands before the model.
    """

    base_environment: Mapping[str, str]
    program: tuple[str, ...] = field(default_factory=default_program)
    ready_seconds: float = 1800.0
    port: int | None = None


class ArmServer:
    """One launch of one arm."""

    def __init__(
        self,
        settings: ServerSettings,
        model: str,
        served_name: str,
        folder: Path,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings
        self._model = model
        self.served_name = served_name
        self._arguments = tuple(arguments)
        self._changes = dict(environment or {})
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self.port = 0
        self.seconds_to_ready = 0.0

    @property
    def log_path(self) -> Path:
        return self.folder / "server.log"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """Defaults first: an argument of the user's that comes later replaces one."""
        return [
            *self._settings.program,
            self._model,
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--served-model-name",
            self.served_name,
            *self._arguments,
        ]

    def process_environment(self) -> dict[str, str]:
        """An empty value in the arm's changes removes the variable."""
        # The development mode has the endpoint that empties the prefix cache.
        environment = {"VLLM_SERVER_DEV_MODE": "1", **self._settings.base_environment}
        environment["PYTHONUNBUFFERED"] = "1"
        for name, value in self._changes.items():
            if value:
                environment[name] = value
            else:
                environment.pop(name, None)
        return environment

    # --- start and stop -------------------------------------------------------------------------

    def start(self, check: Callable[[], None] = lambda: None) -> None:
        """Returns when the server answers. `check` is called while waiting and may raise."""
        self.folder.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        deadline = begin + self._settings.ready_seconds
        for attempt in range(PORT_ATTEMPTS):
            port = choose_port(self._settings.port if attempt == 0 else None)
            if port is None:
                raise LaunchError("the system has no free port on 127.0.0.1")
            self.port = port
            try:
                self._start_process()
                if self._wait_until_ready(deadline, check):
                    self.seconds_to_ready = time.monotonic() - begin
                    return
            except BaseException:
                self.stop()
                raise
            self.stop()  # the port was taken between the choice and the start
        raise LaunchError(f"every port that was tried was taken, the last was {self.port}")

    def _start_process(self) -> None:
        try:
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
        except FileNotFoundError:
            program = self._settings.program[0]
            raise LaunchError(f"there is no program {program}: install vLLM where this runs") from (
                None
            )
        self._leader = self._process.pid

    def _wait_until_ready(self, deadline: float, check: Callable[[], None]) -> bool:
        """False when the port was taken by somebody else."""
        process = self._process
        assert process is not None
        while True:
            code = process.poll()
            if code is not None:
                log = self.log_text()
                if "address already in use" in log.lower():
                    return False
                raise LaunchError(
                    f"the server ended with exit code {code} at its start: {cause(log)}",
                    "unsupported" if refusal(log) else "error",
                )
            if self.is_ready():
                return True
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"the server was not ready within {self._settings.ready_seconds:.0f} s "
                    f"(--ready-timeout); its last line: {last_line(self.log_text())}"
                )
            check()
            time.sleep(0.2)

    def is_ready(self) -> bool:
        """Whether it is our server that answers: the name that it serves is this launch's own."""
        try:
            self.get("/health", seconds=5.0)
            served = json.loads(self.get("/v1/models", seconds=5.0))
        except (OSError, ValueError):
            return False
        return any(model.get("id") == self.served_name for model in served.get("data", ()))

    def stop(self) -> None:
        """Ends every process of the server; may be called twice."""
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

    def exit_code(self) -> int | None:
        """None while it lives."""
        return 0 if self._process is None else self._process.poll()

    def died(self) -> str | None:
        """Why it is dead, in a sentence, or None while it lives."""
        code = self.exit_code()
        if code is None:
            return None
        return f"the server died (exit code {code}): {cause(self.log_text())}"

    def processes(self) -> list[int]:
        return session_members(self._leader) if self._leader else []

    # --- talking to it --------------------------------------------------------------------------

    def get(self, path: str, seconds: float = 30.0) -> str:
        """Raises OSError where it does not answer; an HTTP error is one."""
        return self._ask(urllib.request.Request(self.base_url + path), seconds)

    def post(self, path: str, body: Any = None, seconds: float = 60.0) -> str:
        data = b"" if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.base_url + path, data=data, headers={"Content-Type": "application/json"}
        )
        return self._ask(request, seconds)

    def _ask(self, request: urllib.request.Request, seconds: float) -> str:
        # No proxy, whatever the environment says: the server is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=seconds) as response:
            return str(response.read().decode(errors="replace"))

    def log_text(self, offset: int = 0) -> str:
        """What the server wrote from byte `offset` on; at most the last 4 MiB of it."""
        try:
            with self.log_path.open("rb") as log:
                end = log.seek(0, 2)
                log.seek(max(offset, end - (4 << 20)))
                return log.read().decode(errors="replace")
        except OSError:
            return ""

    def log_size(self) -> int:
        try:
            return self.log_path.stat().st_size
        except OSError:
            return 0


# --- reading what a server said -----------------------------------------------------------------

_ERROR = re.compile(r"(?:^|[\s\]])((?:\w+\.)*[A-Z]\w*(?:Error|Exception): .*)")
_REFUSAL = re.compile(r"^(?:.*\s)?(vllm-amdopt: (?!.*is switched off and vLLM goes on).+)$")
_DISK_FULL = "No space left on device"


def refusal(log: str) -> str | None:
    """The sentence with which the plugin ended the server, if it is what the log ends with."""
    for line in reversed(log.strip().splitlines()[-5:]):
        found = _REFUSAL.match(line)
        if found and "WARNING" not in line and "INFO" not in line:
            return found.group(1)
    return None


def cause(log: str) -> str:
    """The line that says why, as far as one can be told from a log full of tracebacks."""
    if _DISK_FULL in log:
        return f"{_DISK_FULL}: free some, then go on with --resume"
    said = refusal(log)
    if said is not None:
        return said
    # The cause stands far above the end: each process adds its own traceback on the way out.
    for line in log.splitlines():
        found = _ERROR.search(line)
        if found:
            return found.group(1).strip()[:400]
    return last_line(log)


def last_line(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1].strip()[:400] if lines else "it wrote nothing"


_MEMORY = re.compile(r"Model loading took ([\d.]+) ?GiB")
_CACHE_MEMORY = re.compile(r"Available KV cache memory: ([\d.]+) ?GiB")
_CACHE_TOKENS = re.compile(r"(?:GPU|CPU) KV cache size: ([\d,]+) tokens")


def launch_facts(log: str) -> dict[str, float]:
    """What a launch says about memory on a device, by the names that `metrics` has for it."""
    facts: dict[str, float] = {}
    if found := _MEMORY.search(log):
        facts["weights_gib"] = float(found.group(1))
    if found := _CACHE_MEMORY.search(log):
        facts["kv_cache_gib"] = float(found.group(1))
    if found := _CACHE_TOKENS.search(log):
        facts["kv_cache_tokens"] = float(found.group(1).replace(",", ""))
    return facts


_COMPILATION = re.compile(
    r"JIT compilation during inference|\S+ \S+ during inference: "
    r"|\[aiter\].*\b(?:start build|build|compil)\w*|finish build \[|start build \["
    r"|torch\.compile took|Compiling a graph for",
    re.IGNORECASE,
)


def compilations(log: str) -> list[str]:
    """The lines that say that something was compiled: Triton, CuTe (vLLM's monitor), AITER."""
    return [line.strip()[:200] for line in log.splitlines() if _COMPILATION.search(line)]


_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})?\s+([-+.\deE]+|NaN|[+-]Inf)$")


def read_metrics(text: str) -> dict[str, float]:
    """Prometheus' text, each name summed over its labels; broken lines are left out."""
    totals: dict[str, float] = {}
    for line in text.splitlines():
        found = _SAMPLE.match(line.strip())
        if found:
            with contextlib.suppress(ValueError):
                totals[found.group(1)] = totals.get(found.group(1), 0.0) + float(found.group(2))
    return totals
