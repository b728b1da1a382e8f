"""One lock for each GPU, so that two runs on one machine wait for each other; it reads no GPU.

A lock is a file with an advisory lock on it, which the kernel drops when its holder dies, however
that happens. The directory has to be the same one for everybody: mount it into containers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

DIRECTORY_VARIABLE = "VLLM_AMDOPT_LOCK_DIR"
DIRECTORIES = (Path("/var/lock/vllm-amdopt"), Path("/tmp/vllm-amdopt-locks"))
"""The first one that can be used, unless the variable names one."""

WHOLE_MACHINE = "machine"
"""The lock's name where no GPU is used: two runs share the cores just as well."""


class BusyError(RuntimeError):
    """Somebody else has what this run needs; a sentence that says who."""


class LockDirectoryError(ValueError):
    """No directory for locks can be used; a sentence that says what to do."""


def lock_directory(environment: Mapping[str, str]) -> Path:
    """The directory, made where it is missing, open to all users of the machine."""
    named = environment.get(DIRECTORY_VARIABLE)
    for path in (Path(named),) if named else DIRECTORIES:
        with contextlib.suppress(OSError):
            if not path.is_dir():
                path.mkdir(parents=True)
                path.chmod(0o1777)  # what mkdir sets is cut by the umask
            if os.access(path, os.W_OK | os.X_OK):
                return path
    tried = named or " and ".join(map(str, DIRECTORIES))
    raise LockDirectoryError(
        f"no lock can be made in {tried}: set {DIRECTORY_VARIABLE} to a directory that everybody "
        "on this machine may write to"
    )


class Locks:
    """Locks by name, held from `acquire` to `release`.

    Always taken in the same order, and all given back where one is not to be had, so that two runs
    that want some of the same GPUs cannot wait for each other for ever.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: dict[str, int] = {}

    @property
    def held(self) -> tuple[str, ...]:
        return tuple(self._held)

    def acquire(
        self,
        names: Sequence[str],
        wait_seconds: float = 0.0,
        on_wait: Callable[[str], None] = lambda who: None,
        purpose: str = "",
    ) -> None:
        """Returns with all of them held; BusyError after `wait_seconds` without."""
        deadline = time.monotonic() + wait_seconds
        while True:
            busy = self._try(sorted(set(names)), purpose)
            if busy is None:
                return
            if time.monotonic() >= deadline:
                raise BusyError(f"{busy}; wait for it with --wait-gpus 2h, or choose others")
            on_wait(busy)
            time.sleep(min(5.0, max(0.05, deadline - time.monotonic())))

    def release(self) -> None:
        for descriptor in self._held.values():
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)
        self._held.clear()

    def _try(self, names: Sequence[str], purpose: str) -> str | None:
        for name in names:
            busy = self.lock(name, purpose)
            if busy is not None:
                self.release()
                return busy
        return None

    def lock(self, name: str, purpose: str = "") -> str | None:
        """Add one to those held: None when it is ours now, else a sentence on who has it."""
        if name in self._held:
            return None
        path = self._directory / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.lock"
        try:
            descriptor = _open(path)
        except OSError as error:
            raise LockDirectoryError(
                f"the lock {path} cannot be opened ({error.strerror}): remove it, or set "
                f"{DIRECTORY_VARIABLE}"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(descriptor)
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            return f"{_spoken(name)} is in use by {owner}"
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, 0o666)
        record = {
            "user": _user(),
            "process": os.getpid(),
            "host": socket.gethostname(),
            "purpose": purpose,
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with contextlib.suppress(OSError):  # who holds it is a courtesy: a full disk may refuse it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(record).encode(), 0)
        self._held[name] = descriptor
        return None


def _open(path: Path) -> int:
    """The lock file, made where it is missing.

    Never with O_CREAT on a file that is there: the kernel forbids that for somebody else's file in
    a directory like this one (fs.protected_regular).
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)


def _spoken(name: str) -> str:
    return "this machine" if name == WHOLE_MACHINE else f"GPU {name}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _owner(descriptor: int) -> str:
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
        purpose = f" ({record['purpose']})" if record.get("purpose") else ""
        return (
            f"{record['user']}, process {record['process']} on {record['host']}, since "
            f"{record['since']}{purpose}"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "somebody who left no name"
