"""The launcher of `tests/serving.py`, against a stand-in that behaves badly on purpose.

What it does with real vLLM is tested by everything in `tests/integration`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.serving import Server, ServerError, choose_port, session_members

STAND_IN = '''
import http.server, json, os, pathlib, signal, subprocess, sys, time
mode, arguments = sys.argv[1], sys.argv[2:]
port = int(arguments[arguments.index("--port") + 1])
name = arguments[arguments.index("--served-model-name") + 1]
here = pathlib.Path(arguments[0])
print("arguments", *arguments, flush=True)
print("OMP_NUM_THREADS", os.environ["OMP_NUM_THREADS"], flush=True)
print("VLLM", sorted(key for key in os.environ if key.startswith("VLLM_")), flush=True)
subprocess.Popen([sys.executable, "-c", """if True:
    import signal, time
    if %r:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)""" % (mode == "stubborn")])
if mode == "dies":
    print("RuntimeError: no such kernel", flush=True)
    sys.exit(3)
if mode == "never-ready":
    time.sleep(600)
if mode == "taken-once" and not (here / "tried").exists():
    (here / "tried").touch()
    print("OSError: [Errno 98] Address already in use", flush=True)
    sys.exit(1)
if mode == "always-taken":
    print("OSError: [Errno 98] Address already in use", flush=True)
    sys.exit(1)
if mode == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "somebody-else":
    name = "their-model"

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, code, body):
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.answer(200, {"data": [{"id": name}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["prompt"] == "die":
            print("Fatal: engine core died", flush=True)
            os._exit(7)
        if body["model"] != name or body["max_tokens"] < 1:
            return self.answer(400, {"error": "max_tokens must be at least 1"})
        self.answer(200, {"choices": [{
            "text": body["prompt"][::-1], "token_ids": [1, 2], "finish_reason": "length",
            "logprobs": {"token_logprobs": [-0.5, -0.25]},
        }]})

http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
'''


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    return directory


def stand_in(tmp_path: Path, mode: str) -> Sequence[str]:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    return (sys.executable, str(script), mode)


def test_answers_come_back_in_the_order_of_the_prompts(model: Path, tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(12)]
    with Server(model, program=stand_in(tmp_path, "serves"), folder=tmp_path) as server:
        answers = server.complete_together(prompts, 4)
        assert server.complete_together([]) == []
    assert [answer.text for answer in answers] == [prompt[::-1] for prompt in prompts]
    assert answers[0].token_ids == (1, 2)
    assert answers[0].logprobs == (-0.5, -0.25)
    assert answers[0].finish_reason == "length"


@pytest.mark.parametrize("mode", ["serves", "stubborn"])
def test_no_process_is_left(
    model: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.serving.STOP_SECONDS", 0.2)
    server = Server(model, program=stand_in(tmp_path, mode), folder=tmp_path)
    with pytest.raises(KeyboardInterrupt), server:
        processes = server.processes()
        assert len(processes) == 2, "the server and its child"
        raise KeyboardInterrupt
    assert session_members(processes[0]) == []
    assert server.processes() == []


def test_server_ends_when_the_process_that_started_it_is_killed(
    model: Path, tmp_path: Path
) -> None:
    program = stand_in(tmp_path, "serves")
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom pathlib import Path\nfrom tests.serving import Server\n"
            f"server = Server(Path({str(model)!r}), program={program!r}, "
            f"folder=Path({str(tmp_path)!r}))\n"
            "server.start()\nprint(server._process.pid, flush=True)\ntime.sleep(600)",
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert starter.stdout is not None
    leader = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + 30
    while leader in session_members(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    alive = session_members(leader)
    for left in alive:
        os.kill(left, 9)
    assert leader not in alive


def test_early_end_is_reported_with_the_end_of_the_log(model: Path, tmp_path: Path) -> None:
    server = Server(model, program=stand_in(tmp_path, "dies"), folder=tmp_path)
    with pytest.raises(ServerError, match=r"exit code 3 (?s:.*) no such kernel"):
        server.start()
    assert server.processes() == []


def test_server_that_never_gets_ready_is_ended(model: Path, tmp_path: Path) -> None:
    program = stand_in(tmp_path, "never-ready")
    server = Server(model, program=program, folder=tmp_path, start_seconds=1.0)
    with pytest.raises(ServerError, match="not ready within 1 s"):
        server.start()
    assert server.processes() == []


def test_stranger_on_the_port_is_not_taken_for_the_server(model: Path, tmp_path: Path) -> None:
    program = stand_in(tmp_path, "somebody-else")
    with pytest.raises(ServerError, match="not ready"):
        Server(model, program=program, folder=tmp_path, start_seconds=2.0).start()


def test_port_lost_between_choice_and_start_is_replaced(model: Path, tmp_path: Path) -> None:
    wanted = choose_port()
    program = stand_in(tmp_path, "taken-once")
    with Server(model, program=program, folder=tmp_path, port=wanted) as server:
        assert server.port != wanted
        assert server.complete("abc").text == "cba"


def test_endless_port_trouble_ends_in_an_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="in use"):
        Server(model, program=stand_in(tmp_path, "always-taken"), folder=tmp_path).start()


def test_taken_port_is_not_chosen() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert choose_port(taken) not in (taken, 0)


def test_refused_request_is_an_error_in_the_servers_words(model: Path, tmp_path: Path) -> None:
    with Server(model, program=stand_in(tmp_path, "serves"), folder=tmp_path) as server:
        with pytest.raises(ServerError, match=r"HTTP 400 .*max_tokens must be at least 1"):
            server.complete("abc", 0)
        with pytest.raises(ServerError, match=r"died \(exit code 7\)(?s:.*)engine core died"):
            server.complete("die")


def test_arguments_replace_defaults(model: Path, tmp_path: Path) -> None:
    arguments = ["--max-model-len=64", "--enforce-eager", "--tensor-parallel-size", "64"]
    with Server(
        model,
        program=stand_in(tmp_path, "serves"),
        folder=tmp_path,
        plugin="attention,mla",
        arguments=arguments,
    ) as server:
        log = server.log
    assert log.count("--max-model-len") == 1
    assert log.count("--enforce-eager") == 1
    assert "--kv-cache-memory-bytes 64M" in log
    assert "--plugin attention,mla\n" in log
    assert "OMP_NUM_THREADS 1\n" in log


def test_environment_is_the_callers_without_vllms_and_with_the_changes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_AMDOPT", "off")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    changes = {"VLLM_AMDOPT_MLA": "on", "VLLM_CPU_OMP_THREADS_BIND": ""}
    program = stand_in(tmp_path, "serves")
    with Server(model, program=program, folder=tmp_path, environment=changes) as server:
        log = server.log
    ours = ["VLLM_CACHE_ROOT", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS"]
    assert f"VLLM {['VLLM_AMDOPT_MLA', *ours]}" in log


def test_temporary_folder_goes_and_a_given_one_stays(model: Path, tmp_path: Path) -> None:
    program = stand_in(tmp_path, "serves")
    with Server(model, program=program) as server:
        temporary = server.log_path.parent
        assert temporary.is_dir()
    assert not temporary.exists()
    with Server(model, program=program, folder=tmp_path / "kept", log_name="a.log"):
        pass
    assert (tmp_path / "kept" / "a.log").is_file()


def test_missing_model_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="there is no model directory"):
        Server(tmp_path / "nowhere").start()
