"""A server that speaks OpenAI's completions API and computes nothing; standard library only.

    python -m vllm_amdopt.bench.mock_server MODEL --port 8000 [--mock-decode-seconds 0.01 ...]

Without delays it is the null server against which the load generator's own limit is measured. Its
`--mock-*` options make it slow, unreliable or silent: the harness is tested with them. Options of
`vllm serve` that it does not know are ignored, so that it can stand in for one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Behaviour:
    """What the server does; counts are of requests for completions since its start.

    `fail_every`, `disconnect_every`: every n-th one, 0 never. `die_after`, `hang_after`,
    `compile_after`: from the n-th on, or at it. `hit_share`: of the prompt tokens, said to be in
    the prefix cache.
    """

    served_name: str
    token_seconds: float = 0.0
    first_token_seconds: float = 0.0
    fail_every: int = 0
    disconnect_every: int = 0
    die_after: int = 0
    hang_after: int = 0
    compile_after: int = 0
    tokens_short: int = 0
    hit_share: float = 0.0
    requests: int = 0
    counters: dict[str, float] = field(
        default_factory=lambda: {
            "vllm:prefix_cache_queries_total": 0.0,
            "vllm:prefix_cache_hits_total": 0.0,
            "vllm:num_preemptions_total": 0.0,
        }
    )


class DisconnectError(Exception):
    """Close the connection in the middle of an answer."""


async def serve(behaviour: Behaviour, host: str, port: int, ready_seconds: float) -> None:
    """Answer until cancelled; not before `ready_seconds` are over."""
    await asyncio.sleep(ready_seconds)

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, DisconnectError):
            while await _one_request(behaviour, reader, writer):
                pass
        writer.close()

    server = await asyncio.start_server(connection, host, port, limit=1 << 24, backlog=2048)
    print(f"mock server on {host}:{port}", flush=True)
    async with server:
        await server.serve_forever()


async def _one_request(
    behaviour: Behaviour, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """Reads one request and answers it; False at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return False
    method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
    length = 0
    for line in head.decode(errors="replace").splitlines()[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-length":
            length = int(value)
    body = await reader.readexactly(length) if length else b""
    if method == "POST" and path == "/v1/completions":
        await _complete(behaviour, json.loads(body), writer)
    elif path == "/health" or path.startswith("/reset_prefix_cache"):
        _answer(writer, 200, b"")
    elif path == "/v1/models":
        _answer(writer, 200, json.dumps({"data": [{"id": behaviour.served_name}]}).encode())
    elif path == "/metrics":
        lines = [f'{name}{{engine="0"}} {value}' for name, value in behaviour.counters.items()]
        _answer(writer, 200, "\n".join(lines).encode(), "text/plain")
    else:
        _answer(writer, 404, b'{"detail": "Not Found"}')
    await writer.drain()
    return True


def _answer(
    writer: asyncio.StreamWriter, status: int, body: bytes, kind: str = "application/json"
) -> None:
    reason = {200: "OK", 404: "Not Found", 500: "Internal Server Error"}[status]
    writer.write(
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


async def _complete(
    behaviour: Behaviour, request: dict[str, Any], writer: asyncio.StreamWriter
) -> None:
    behaviour.requests += 1
    number = behaviour.requests
    if behaviour.die_after and number > behaviour.die_after:
        print("RuntimeError: the mock server was told to die", flush=True)
        os._exit(17)
    if behaviour.hang_after and number > behaviour.hang_after:
        await asyncio.sleep(3600)
    if behaviour.compile_after and number == behaviour.compile_after:
        print("Triton kernel JIT compilation during inference: mock_kernel.", flush=True)
    if behaviour.fail_every and number % behaviour.fail_every == 0:
        _answer(writer, 500, b'{"error": "the mock server was told to fail"}')
        return
    disconnect = bool(behaviour.disconnect_every) and number % behaviour.disconnect_every == 0
    prompt = request.get("prompt", "")
    prompt_tokens = len(prompt) if isinstance(prompt, list) else max(1, len(str(prompt).split()))
    behaviour.counters["vllm:prefix_cache_queries_total"] += prompt_tokens
    behaviour.counters["vllm:prefix_cache_hits_total"] += prompt_tokens * behaviour.hit_share
    tokens = max(1, int(request.get("max_tokens") or 16) - behaviour.tokens_short)
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
    if not request.get("stream"):
        await asyncio.sleep(behaviour.first_token_seconds + tokens * behaviour.token_seconds)
        answer = {"choices": [{"index": 0, "text": " a" * tokens}], "usage": usage}
        _answer(writer, 200, json.dumps(answer).encode())
        return
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = _chunk({"choices": [{"index": 0, "text": " a", "finish_reason": None}]})
    # Each token has its time from the start on, so that late ones do not add up.
    begin = time.monotonic() + behaviour.first_token_seconds
    for token in range(tokens):
        await asyncio.sleep(
            max(0.0, begin + token * behaviour.token_seconds - time.monotonic())
            if behaviour.token_seconds or behaviour.first_token_seconds
            else 0
        )
        if disconnect and token >= tokens // 2:
            raise DisconnectError
        writer.write(chunk)
    writer.write(_chunk({"choices": [], "usage": usage}))
    writer.write(_framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def _chunk(event: dict[str, Any]) -> bytes:
    return _framed(b"data: " + json.dumps(event).encode() + b"\n\n")


def _framed(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mock_server", allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", default="mock")
    parser.add_argument("--mock-decode-seconds", type=float, default=0.0)
    parser.add_argument("--mock-prefill-seconds", type=float, default=0.0)
    parser.add_argument("--mock-ready-seconds", type=float, default=0.0)
    for name in ("fail-every", "disconnect-every", "die-after", "hang-after", "compile-after"):
        parser.add_argument(f"--mock-{name}", type=int, default=0)
    parser.add_argument("--mock-short-by", type=int, default=0)
    parser.add_argument("--mock-hit-share", type=float, default=0.0)
    parser.add_argument("--mock-say", action="append", default=[], metavar="LINE")
    parser.add_argument("--mock-exit", type=int, help="end with this code instead of serving")
    options, _ = parser.parse_known_args(arguments)
    for line in options.mock_say:
        print(line, flush=True)
    if options.mock_exit is not None:
        return int(options.mock_exit)
    behaviour = Behaviour(
        options.served_model_name,
        token_seconds=options.mock_decode_seconds,
        first_token_seconds=options.mock_prefill_seconds,
        fail_every=options.mock_fail_every,
        disconnect_every=options.mock_disconnect_every,
        die_after=options.mock_die_after,
        hang_after=options.mock_hang_after,
        compile_after=options.mock_compile_after,
        tokens_short=options.mock_short_by,
        hit_share=options.mock_hit_share,
    )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(behaviour, options.host, options.port, options.mock_ready_seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
