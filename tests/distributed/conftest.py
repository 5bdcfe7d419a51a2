"""One run of `scenarios.py` for all tests, whichever worker asks for it first."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rectiflow


@pytest.fixture(scope="session")
def outcome(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, Any]:
    """What the program printed."""
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        folder = folder.parent
    answer = folder / "distributed.json"
    with open(folder / "distributed.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not answer.exists():
            answer.write_text(_run(tmp_path_factory.mktemp("runs")))
    return json.loads(answer.read_text())


def _run(folder: Path) -> str:
    program = Path(__file__).with_name("scenarios.py")
    roots = [Path(rectiflow.__file__).parents[1], program.parents[1]]
    done = subprocess.run(
        [sys.executable, str(program), str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, roots))},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
