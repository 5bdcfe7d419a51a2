"""Whatever ends one process ends all of them, and is told once."""

import socket
from typing import Any

import pytest

from rectiflow.distributed import lifeline

pytestmark = pytest.mark.distributed

COMPLAINT = "shard 7 is cut; encode it again"


def test_what_follows_a_greeting_is_heard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    with ours, theirs:
        theirs.sendall(b'{"rank": 1}\n{"text": "trouble"}\n')
        assert lifeline._greeting(ours) == {"rank": 1}
        assert lifeline._Peer(ours, "here").receive() == [{"text": "trouble"}]


def told(outcome: dict[str, Any], name: str) -> tuple[list[int], list[str]]:
    """The exit codes by rank, and the lines on stderr."""
    group = outcome["troubles"][name]
    return [process["code"] for process in group["processes"]], group["stderr"].splitlines()


@pytest.mark.parametrize(
    ("name", "killed"), [("second killed", 1), ("first killed", 0), ("killed while saving", 1)]
)
def test_a_killed_process(outcome: dict[str, Any], name: str, killed: int) -> None:
    codes, lines = told(outcome, name)
    assert codes[killed] == -9
    assert codes[1 - killed] == 1
    (line,) = lines
    assert line.startswith(f"rectiflow: error: process {killed} of 2 on ")
    assert "killed, or its machine is gone" in line


@pytest.mark.parametrize("name", ["second complains", "first complains", "all complain"])
def test_an_error_of_one_process_or_of_all(outcome: dict[str, Any], name: str) -> None:
    codes, lines = told(outcome, name)
    assert all(codes)
    assert codes[0] == 2
    (line,) = lines
    assert line.startswith("rectiflow: error: ")
    assert line.endswith(COMPLAINT)
    assert name != "second complains" or line.startswith("rectiflow: error: process 1 of 3 on ")


def test_a_full_disk_beside_the_training_leaves_the_last_checkpoint(
    outcome: dict[str, Any],
) -> None:
    codes, (line,) = told(outcome, "disk full")
    assert all(codes)
    assert line.startswith("rectiflow: error: process 1 of 2 on ")
    assert "weights-00002-of-00002.safetensors: no space left on the disk" in line
    assert outcome["kept"] == {"step_00000003": 3}


def test_a_defect_keeps_its_traceback_and_its_consequences_stay_silent(
    outcome: dict[str, Any],
) -> None:
    codes, lines = told(outcome, "second fails")
    assert all(codes)
    assert lines[0].startswith("rectiflow: error: process 1 of 3 on ")
    assert lines[0].endswith(": RuntimeError: a defect")
    assert lines[-1] == "RuntimeError: a defect"
    assert sum(line.startswith("Traceback") for line in lines) == 1


def test_the_command_line_tells_once_what_is_wrong_with_the_call(outcome: dict[str, Any]) -> None:
    codes, lines = told(outcome, "command line")
    assert all(codes)
    (line,) = lines
    assert "--shard-over 3 does not divide the 2 processes; give the number" in line
