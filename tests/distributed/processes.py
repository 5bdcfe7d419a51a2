"""Processes as torchrun would start them, but forked from this one: cheap, as torch is loaded.

The parent itself must never compute, nor start threads.
"""

import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rectiflow.base.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended: what its work returned, and its exit code (negative: a signal)."""

    result: Any
    code: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """All processes by rank, what they wrote to stderr together, and how long it took."""

    processes: list[Ended]
    stderr: str
    duration_s: float

    @property
    def results(self) -> list[Any]:
        assert all(process.code == 0 for process in self.processes), self.stderr
        return [process.result for process in self.processes]

    @property
    def codes(self) -> list[int]:
        return [process.code for process in self.processes]


def start_together(
    num_processes: int, work: Callable[[], Any], *, kill: tuple[int, float] | None = None
) -> Group:
    """Run `work` in so many processes of one world, each as a command line would.

    `kill` is the rank of one that is killed, and after how many seconds; the others are then told
    to stop.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "stderr").touch()  # one may be killed before it opens it
        port = free_port()
        children = [_fork(rank, num_processes, port, folder, work) for rank in range(num_processes)]
        if kill is not None:
            rank, after_s = kill
            time.sleep(after_s)
            # Not yet waited for, so the numbers are still theirs.
            os.kill(children[rank], signal.SIGKILL)
            if others := [child for child in children if child != children[rank]]:
                time.sleep(1)
                for child in others:  # as torchrun does: who is still starting has no lifeline
                    os.kill(child, signal.SIGTERM)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        results = [folder / f"result_{rank}" for rank in range(num_processes)]
        return Group(
            processes=[
                Ended(result=pickle.loads(p.read_bytes()) if p.exists() else None, code=code)
                for p, code in zip(results, codes, strict=True)
            ],
            stderr=(folder / "stderr").read_text(),
            duration_s=time.monotonic() - started,
        )


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def _fork(rank: int, num_processes: int, port: int, folder: Path, work: Callable[[], Any]) -> int:
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        signal.alarm(120)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
        }
        os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        result = work()
        (folder / f"result_{rank}").write_bytes(pickle.dumps(result))
        code = 0
    except SystemExit as leave:
        code = int(leave.code or 0)
    except UserError as error:  # as the command line does
        print(f"rectiflow: error: {error}", file=sys.stderr)
        code = 2
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)
