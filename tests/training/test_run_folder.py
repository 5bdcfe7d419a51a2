import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rectiflow.base.errors import UserError
from rectiflow.training import run_folder
from rectiflow.training.run_folder import locked


@pytest.fixture
def dead_number() -> int:
    """The number of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def hold(run: Path, holder: int) -> int:
    descriptor = os.open(run / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, f"{holder}\n".encode())
    return descriptor


def test_what_a_killed_process_left_behind_is_waited_for(tmp_path: Path, dead_number: int) -> None:
    descriptor = hold(tmp_path, dead_number)
    threading.Timer(0.1, os.close, [descriptor]).start()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_disk_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="cannot lock .*: No locks available"), locked(tmp_path):
        pass


def test_but_not_forever(tmp_path: Path, dead_number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_LEFTOVER_TIMEOUT_S", 0.1)
    descriptor = hold(tmp_path, dead_number)
    refusal = f"another process .number {dead_number}. is at work"
    with pytest.raises(UserError, match=refusal), locked(tmp_path):
        pass
    os.close(descriptor)
