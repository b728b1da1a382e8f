"""How the processes of a server hear that they have to end."""

from __future__ import annotations

import signal
import subprocess
import sys

from vllm_amdopt.bench.processes import prepare_child

WAIT_SECONDS = 30.0


def test_a_child_of_a_background_job_ends_on_sigint() -> None:
    """A shell's `command &` ignores SIGINT, and what it starts would too."""
    program = "import time; print('ready', flush=True); time.sleep(600)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, preexec_fn=prepare_child
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGINT)
        try:
            assert child.wait(WAIT_SECONDS) != 0
        finally:
            child.kill()
