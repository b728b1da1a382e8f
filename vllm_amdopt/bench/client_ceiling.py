"""How fast the load generator is by itself: `vllm bench serve` against a server that computes
nothing. A measurement near this ceiling is one of the client, not of a server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vllm_amdopt.bench.load import Drive, LoadError, bench_arguments
from vllm_amdopt.bench.plan import Level
from vllm_amdopt.bench.server import ArmServer, ServerSettings

FILE_NAME = "client_ceiling.json"
SERVER = (sys.executable, "-m", "vllm_amdopt.bench.mock_server")


@dataclass(frozen=True)
class Ceiling:
    """What the client reached on a machine. Tokens and requests per second, milliseconds.

    `mean_itl_ms` and `mean_ttft_ms` are the client's own part of those latencies.
    """

    host: str
    concurrency: int
    output_tokens_per_second: float
    requests_per_second: float
    mean_ttft_ms: float
    mean_itl_ms: float
    client_share: float | None


def measure_ceiling(
    tokenizer: str,
    drive: Drive,
    folder: Path,
    environment: Mapping[str, str],
    *,
    host: str,
    concurrencies: Sequence[int] = (16, 64),
    output_len: int = 128,
    on_level: Callable[[int], None] = lambda concurrency: None,
) -> list[Ceiling]:
    """One ceiling for each concurrency, after one run that is thrown away. May raise LoadError."""
    settings = ServerSettings(environment, program=SERVER, ready_seconds=120.0)
    server = ArmServer(settings, tokenizer, "null", folder)
    found = []
    server.start()
    try:
        first = min(concurrencies)
        for number, concurrency in enumerate((first, *concurrencies)):
            on_level(concurrency)
            level = Level("random", 32, output_len, concurrency=concurrency)
            arguments = bench_arguments(
                level,
                base_url=server.base_url,
                served_name=server.served_name,
                tokenizer=tokenizer,
                prompts=10 * concurrency,
                seed=number,
            )

            def check() -> None:
                died = server.died()
                if died is not None:
                    raise LoadError(died)

            result = drive(arguments, folder / f"ceiling_{number}.json", 600.0, check)
            if result.failure is not None:
                raise LoadError(result.failure)
            if number == 0:
                continue
            found.append(
                Ceiling(
                    host=host,
                    concurrency=concurrency,
                    output_tokens_per_second=result.metrics["output_throughput"],
                    requests_per_second=result.metrics["request_throughput"],
                    mean_ttft_ms=result.metrics["mean_ttft_ms"],
                    mean_itl_ms=result.metrics["mean_itl_ms"],
                    client_share=result.client_share,
                )
            )
    finally:
        server.stop()
    return found


def save_ceilings(ceilings: Sequence[Ceiling], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps([asdict(ceiling) for ceiling in ceilings], indent=1))
    os.replace(temporary, path)


def load_ceilings(path: Path, host: str) -> list[Ceiling]:
    """Those measured on this machine; [] where there are none or the file is broken."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        ceilings = [Ceiling(**entry) for entry in entries]
    except (OSError, ValueError, TypeError):
        return []
    return [ceiling for ceiling in ceilings if ceiling.host == host]


def ceiling_near(ceilings: Sequence[Ceiling], concurrency: int) -> Ceiling | None:
    """The one measured at the concurrency nearest to the asked one."""
    return min(ceilings, key=lambda c: abs(c.concurrency - concurrency), default=None)
