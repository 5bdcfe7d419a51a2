"""A connection of every process with the first, so that what ends one of them ends all.

A process that waits for another inside a collective operation hears nothing, not even a signal. So
a thread listens here: a process in trouble says so before it leaves, and of one that was killed
the kernel closes the connection. The first process prints one line, and all leave within seconds.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from rectiflow.base.errors import UserError

# How long a defect waits for its cause: a lost connection is mostly the death of its other end.
CAUSE_TIMEOUT_S = 2.0
# How long the others wait for the first process to print its line and go.
FAREWELL_TIMEOUT_S = 10.0
# A machine without power closes no connection: ask it after this silence, this often.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 4}


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why a process leaves. A defect may be only the consequence of another one's trouble."""

    rank: int
    text: str
    code: int
    is_defect: bool

    @classmethod
    def of(cls, error: BaseException, rank: int) -> Trouble:
        """The trouble that an exception is."""
        if isinstance(error, UserError):
            return cls(rank=rank, text=str(error), code=2, is_defect=False)
        if isinstance(error, KeyboardInterrupt):
            return cls(rank=rank, text="interrupted", code=130, is_defect=False)
        last = traceback.format_exception_only(error)[-1].strip()
        return cls(rank=rank, text=last, code=1, is_defect=True)

    @classmethod
    def death(cls, rank: int) -> Trouble:
        """A process that is gone without a word."""
        text = (
            "killed, or its machine is gone. The checkpoints so far are kept; the same command "
            "continues"
        )
        return cls(rank=rank, text=text, code=1, is_defect=False)


class Lifeline:
    """This process's ends of the connections: to the first process, or from it to all others."""

    def __init__(self, rank: int, num_processes: int, peers: dict[int, _Peer]) -> None:
        self._rank, self._num_processes, self._peers = rank, num_processes, peers
        self._lock = threading.Lock()
        self._is_over = False
        self._error: BaseException | None = None
        self._verdict: int | None = None
        self._suspects: list[Trouble] = []
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()

    @classmethod
    def tie(cls, rank: int, num_processes: int) -> Lifeline:
        """Connect the processes of the default process group; every process must call it."""
        if rank > 0:
            return cls(rank, num_processes, {0: _connect(rank)})
        return cls(rank, num_processes, _accept(num_processes))

    @contextmanager
    def holding(self) -> Generator[None]:
        """Within, an error here ends all processes, and one elsewhere ends this one."""
        try:
            yield
        except BaseException as error:
            self._leave_in_trouble(error)
            raise
        for peer in self._peers.values():
            peer.send({"bye": True})
        self._thread.join(FAREWELL_TIMEOUT_S)
        for peer in self._peers.values():
            peer.close()

    def _leave_in_trouble(self, error: BaseException) -> None:
        trouble = Trouble.of(error, self._rank)
        if self._rank > 0:
            # The first process speaks for all; once it has, the thread ends this process.
            self._error = error
            self._peers[0].send(asdict(trouble))
            self._thread.join(CAUSE_TIMEOUT_S + FAREWELL_TIMEOUT_S)
            return
        if trouble.is_defect:
            # If it comes from another process's trouble, the thread tells that and ends this one.
            self._thread.join(CAUSE_TIMEOUT_S)
        with self._lock:
            self._is_over = True
            self._pronounce(0)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer.socket, selectors.EVENT_READ, rank)
            while selector.get_map():
                ready = selector.select(CAUSE_TIMEOUT_S if self._suspects else None)
                if not ready:
                    self._end(self._suspects[0])
                for key, _ in ready:
                    for message in self._peers[key.data].receive():
                        self._hear(key.data, message)
                        if message is None or "bye" in message:
                            selector.unregister(key.fileobj)
                            break

    def _hear(self, rank: int, message: dict[str, Any] | None) -> None:
        """A message of a process; None when the connection is closed."""
        if message is None:
            self._end(Trouble.death(rank))
        elif "about" in message:
            self._verdict = message["about"]
            farewell = threading.Timer(FAREWELL_TIMEOUT_S, os._exit, [1])
            farewell.daemon = True
            farewell.start()
        elif "text" in message:
            trouble = Trouble(**message)
            if trouble.is_defect:
                self._suspects.append(trouble)
            else:
                self._end(trouble)

    def _end(self, trouble: Trouble) -> None:
        """End this process: the first one tells why, the others when it has gone."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            if self._rank == 0:
                self._say(trouble)
                self._pronounce(trouble.rank)
            elif self._verdict == self._rank and self._error is not None:
                trouble = Trouble.of(self._error, self._rank)
                if trouble.is_defect:
                    traceback.print_exception(self._error)
            elif self._verdict is None and self._rank == 1:
                self._say(trouble)
            sys.stderr.flush()
            os._exit(trouble.code)

    def _say(self, trouble: Trouble) -> None:
        peer = self._peers[trouble.rank]
        line = " ".join(trouble.text.splitlines())
        print(
            f"rectiflow: error: process {trouble.rank} of {self._num_processes} on {peer.host}: "
            f"{line}",
            file=sys.stderr,
            flush=True,
        )

    def _pronounce(self, rank: int) -> None:
        for peer in self._peers.values():
            peer.send({"about": rank})


class _Peer:
    """One connection: a JSON object a line, both ways."""

    def __init__(self, connection: socket.socket, host: str) -> None:
        self.socket, self.host = connection, host
        self._received = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: dict[str, Any]) -> None:
        with suppress(OSError):  # it has gone already
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any] | None]:
        """The messages that have come since, ended by None when the connection is closed."""
        try:
            new = self.socket.recv(1 << 16)
        except OSError:
            new = b""
        *lines, self._received = (self._received + new).split(b"\n")
        messages: list[dict[str, Any] | None] = [json.loads(line) for line in lines]
        return messages if new else [*messages, None]

    def close(self) -> None:
        self.socket.close()


def _accept(num_processes: int) -> dict[int, _Peer]:
    token = secrets.token_hex(16)
    has_both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if has_both else socket.AF_INET
    peers: dict[int, _Peer] = {}
    with socket.create_server(("", 0), family=family, dualstack_ipv6=has_both) as server:
        dist.broadcast_object_list(
            [server.getsockname()[1], token, socket.gethostname()],
            src=0,
            device=torch.device("cpu"),
        )
        while len(peers) < num_processes - 1:
            connection, _ = server.accept()
            hello = _greeting(connection)
            if secrets.compare_digest(str(hello.get("token")), token):
                peers[hello["rank"]] = _Peer(connection, hello["host"])
            else:  # whoever else knocks on ports
                connection.close()
    return peers


def _greeting(connection: socket.socket) -> dict[str, Any]:
    """The first line of a connection; empty if it is no JSON object."""
    connection.settimeout(FAREWELL_TIMEOUT_S)
    try:
        # Not a byte beyond the line, which would be lost.
        with connection.makefile("rb", buffering=0) as file:
            hello = json.loads(file.readline(1 << 12))
    except (OSError, ValueError):
        return {}
    connection.settimeout(None)
    return hello if isinstance(hello, dict) else {}


def _connect(rank: int) -> _Peer:
    address: list[Any] = [None, None, None]
    dist.broadcast_object_list(address, src=0, device=torch.device("cpu"))
    port, token, host = address
    connection = socket.create_connection((os.environ["MASTER_ADDR"], port))
    peer = _Peer(connection, host)
    peer.send({"rank": rank, "token": token, "host": socket.gethostname()})
    return peer
