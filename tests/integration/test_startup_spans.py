"""A start of real vLLM, divided into stages from the spans and lines that it really writes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.serving import QUIET_ENVIRONMENT
from vllm_amdopt.bench.plan import Arm
from vllm_amdopt.bench.progress import Reporter
from vllm_amdopt.bench.server import ServerSettings
from vllm_amdopt.bench.startup_run import StartupPlan, StartupRun
from vllm_amdopt.run_record import Row

MODEL = Path(__file__).resolve().parents[1] / "models" / "checkpoints" / "llama-gqa"
ARGUMENTS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "256"),  # no bf16 on every CPU
    *("--kv-cache-memory-bytes", "67108864"),
)


def test_real_start_is_divided_into_stages(tmp_path: Path) -> None:
    """If vLLM renames a span or a line, a stage goes missing here and not in a measurement."""
    kept: list[Sequence[Row]] = []
    environment = {
        **os.environ,
        **QUIET_ENVIRONMENT,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # as tests/serving.py does
        "VLLM_LOGGING_LEVEL": "INFO",
    }
    run = StartupRun(
        StartupPlan(str(MODEL), (Arm("stock", {"VLLM_AMDOPT": "0"}, ARGUMENTS),), ("cold",), 1),
        ServerSettings(
            environment, (str(Path(sys.executable).with_name("vllm")), "serve"), ready_seconds=900
        ),
        tmp_path,
        Reporter(io.StringIO(), "none"),
        keep=kept.append,
    )
    run.run()
    assert run.traced and len(kept) == 1
    (row,) = run.rows
    assert row.status == "ok", row.reason
    assert row.details["sources"] == {
        "imports_s": "log",
        "configuration_s": "spans",
        "device_s": "spans",
        "weight_load_s": "spans",
        "compile_s": "spans",
        "graph_capture_s": "log",
        "memory_profiling_s": "spans",
    }
    metrics = row.metrics
    for name in ("imports_s", "configuration_s", "device_s", "weight_load_s", "first_token_s"):
        assert metrics[name] > 0.0, name
    # Eager, and on a CPU: nothing is compiled, nothing captured, and there is no warm-up to time.
    assert metrics["compile_s"] == metrics["graph_capture_s"] == 0.0
    assert metrics["other_s"] < 0.5 * metrics["total_s"]
    assert metrics["kv_cache_tokens"] > 0
