"""`vllm-amdopt bench calibrate-client`: what the load generator reaches by itself."""

import argparse
import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from vllm_amdopt.bench.client_ceiling import FILE_NAME, measure_ceiling, save_ceilings
from vllm_amdopt.bench.gates import LEAST_CEILING
from vllm_amdopt.bench.load import LoadClient, LoadError
from vllm_amdopt.bench.plan import PlanError
from vllm_amdopt.bench.server import LaunchError


def ceiling_path(environment: Mapping[str, str]) -> Path:
    """Where the ceiling of this machine is kept."""
    cache = environment.get("XDG_CACHE_HOME") or f"{environment.get('HOME') or Path.home()}/.cache"
    return Path(cache) / "vllm-amdopt" / FILE_NAME


def add_calibrate_client_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench calibrate-client`."""
    parser.add_argument(
        "model", metavar="MODEL", help="a model directory, for its tokenizer: the usual model"
    )
    parser.add_argument(
        "--concurrency", metavar="N,N", default="16,64", help="requests in flight (default: 16,64)"
    )
    parser.add_argument("--output-len", metavar="N", type=int, default=128)


def run_calibrate_client(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Measure, print and keep the ceilings; exit code 4 where that fails."""
    concurrencies = whole_numbers(options.concurrency, "--concurrency")
    if options.output_len < 2:
        raise PlanError("--output-len counts from 2: one token has no time between tokens")
    path = ceiling_path(environment)
    with tempfile.TemporaryDirectory(prefix="vllm-amdopt-client-") as folder:
        drive = LoadClient(environment, Path(folder) / "load-generator.log")
        try:
            ceilings = measure_ceiling(
                options.model,
                drive,
                Path(folder),
                environment,
                host=platform.node(),
                concurrencies=concurrencies,
                output_len=options.output_len,
                on_level=lambda level: print(f"{level} requests in flight ...", file=sys.stderr),
            )
        except (LoadError, LaunchError) as error:
            print(f"vllm-amdopt: the client was not measured: {error}", file=sys.stderr)
            return 4
        finally:
            drive.close()
    save_ceilings(ceilings, path)
    print("in flight   output tok/s   requests/s   mean TTFT   mean ITL   client")
    for ceiling in ceilings:
        share = "–" if ceiling.client_share is None else f"{ceiling.client_share:.0%}"
        print(
            f"{ceiling.concurrency:9d}   {ceiling.output_tokens_per_second:12.0f}   "
            f"{ceiling.requests_per_second:10.1f}   {ceiling.mean_ttft_ms:6.2f} ms   "
            f"{ceiling.mean_itl_ms:5.2f} ms   {share:>6s}"
        )
    print(
        f"These latencies are the client's own. A measurement is the server's up to about 1/"
        f"{LEAST_CEILING:.0f} of these rates. Kept in {path}."
    )
    return 0


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """`1,8,64`."""
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise PlanError(f"{option} {text!r}: write whole numbers from 1, for example 1,8,64")
    return tuple(int(word) for word in words)
