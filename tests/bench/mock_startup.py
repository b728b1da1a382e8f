"""Stands in for `vllm serve` at its start: says its lines, sends spans, then serves as the mock.

    python -m tests.bench.mock_startup MODEL --port P [--mock-load-seconds 0.2] [--mock-no-spans]

The encoder below is the test's own, so that the receiver is not tested with itself.
"""

from __future__ import annotations

import os
import struct
import sys
import time
import urllib.request
from pathlib import Path

from vllm_amdopt.bench import mock_server


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(data)) + data


def span(name: str, start: float, end: float) -> bytes:
    times = b"".join(
        varint(number << 3 | 1) + struct.pack("<Q", round(value * 1e9))
        for number, value in ((7, start), (8, end))
    )
    # A kind (6), as real spans have one, and ids that nobody reads.
    return field(1, b"t" * 16) + field(5, name) + varint(6 << 3) + varint(1) + times


def export(spans: list[bytes], process: str = "engine_core") -> bytes:
    attribute = field(1, "vllm.process_name") + field(2, field(1, process))
    scope = b"".join(field(2, one) for one in spans)
    return field(1, field(1, field(1, attribute)) + field(2, field(1, field(1, "x")) + scope))


def option(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def main() -> int:
    endpoint = option("--otlp-traces-endpoint")
    if endpoint and "--mock-no-otel" in sys.argv:
        print("ValueError: OpenTelemetry is not available. Unable to initialize a tracer.")
        return 1
    loading = float(option("--mock-load-seconds", "0.1"))
    cache = Path(os.environ["VLLM_CACHE_ROOT"]) / "compiled"
    compiling = 0.0 if cache.exists() else 0.3
    cache.touch()
    print("(APIServer pid=1) INFO 11-26 [api_utils.py] non-default args: {}", flush=True)
    begin = time.time()
    time.sleep(0.05)
    print("(EngineCore pid=2) INFO Initializing a V1 LLM engine (v0.0)", flush=True)
    engine = time.time()
    time.sleep(0.05)
    load = time.time()
    print("INFO Starting to load model x...", flush=True)
    time.sleep(loading)
    loaded = time.time()
    print(f"INFO Model loading took 1.25 GiB memory and {loaded - load:.6f} seconds", flush=True)
    time.sleep(0.1 + compiling)
    compiled = time.time()
    if compiling:
        print(f"INFO torch.compile took {compiling:.2f} s in total", flush=True)
    print("INFO Initial profiling/warmup run took 0.06 s", flush=True)
    time.sleep(0.1)
    done = time.time()
    print("INFO GPU KV cache size: 1,234 tokens", flush=True)
    print(f"INFO init engine (profile, create kv cache, warmup model) took {done - loaded:.2f} s")
    sys.stdout.flush()
    if endpoint:
        spans = [
            span("EngineCoreProc init", engine, done),
            span("Load model", load, loaded),
            span("Load weights", load, loaded),
            span("Prepare model", loaded, done),
            span("Warmup (GPU)", compiled, done),
            span("before the server", begin - 1000, begin - 999),
        ]
        if compiling:
            spans.append(span("Compile graph", compiled - compiling, compiled))
        request = urllib.request.Request(endpoint, export(spans), method="POST")
        urllib.request.urlopen(request, timeout=10).close()
    return mock_server.main()


if __name__ == "__main__":
    sys.exit(main())
