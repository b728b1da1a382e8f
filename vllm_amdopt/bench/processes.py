"""Finds and ends the processes of a server; it starts none and knows no server.

A server lives in a process session of its own, which is how all of its engine and worker processes
are found and ended, whatever happened to the one that started them. Standard library only; Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import time
from pathlib import Path

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def prepare_child() -> None:
    """In a new process: hear of the end, also when the starting process dies without a goodbye.

    A shell starts its background jobs with SIGINT ignored, and children inherit that; then the
    SIGINT with which we ask a server to end would be waited for in vain.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def choose_port(wanted: int | None = None) -> int | None:
    """`wanted` if nobody has it, else a port that the system says is free; None if none is."""
    for port in (wanted, 0):
        if port is None:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    return None


def session_members(leader: int) -> list[int]:
    """The living processes whose session is `leader`'s (zombies are not alive)."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:
            continue
        # "pid (name) state ppid pgrp session ...": the name may hold spaces and parentheses.
        state, _parent, _group, session = stat.rpartition(")")[2].split()[:4]
        if int(session) == leader and state not in "ZX":
            members.append(int(entry.name))
    return sorted(members)


def end_session(leader: int, grace_seconds: float = 1.0) -> None:
    """Ends all processes of a session: SIGTERM, then SIGKILL until none is left."""
    deadline = time.monotonic() + grace_seconds
    sent = signal.SIGTERM
    while members := session_members(leader):
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, sent)
        if time.monotonic() > deadline:
            sent = signal.SIGKILL
        time.sleep(0.05)


def processor_seconds(process: int) -> float | None:
    """User and system time of one process with all its threads; None when it is gone."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
