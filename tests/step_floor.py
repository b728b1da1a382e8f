"""A worker whose steps take at least a given time, so that a server can be slowed by a known share.

    STEP_FLOOR_MILLISECONDS=44 vllm serve MODEL --worker-cls tests.step_floor.Worker

The small models' own steps take a few milliseconds that vary with everything else on a machine. A
floor stands in for a device: it holds each step, the model's work included, to one time, and a
floor 10 % higher is a server slowed by 10 %, whatever the machine does meanwhile.
"""

from __future__ import annotations

import os
import time
from typing import Any

from vllm.logger import init_logger
from vllm.v1.worker.cpu_worker import CPUWorker

VARIABLE = "STEP_FLOOR_MILLISECONDS"


class Worker(CPUWorker):
    """vLLM's own worker for the CPU, held back."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._floor = float(os.environ.get(VARIABLE, "0")) / 1000
        init_logger("vllm.step_floor").info("every step takes at least %g ms", 1000 * self._floor)

    def execute_model(self, scheduler_output: Any) -> Any:
        """As vLLM's, and then whatever is left of the floor."""
        begin = time.monotonic()
        result = super().execute_model(scheduler_output)
        if scheduler_output.total_num_scheduled_tokens > 0:
            time.sleep(max(0.0, begin + self._floor - time.monotonic()))
        return result
