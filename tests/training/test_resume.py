"""A run killed with SIGKILL and continued is the run that was never killed, byte for byte."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rectiflow


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    program = Path(__file__).with_name("kill_and_resume.py")
    roots = [Path(rectiflow.__file__).parents[1], program.parents[1]]
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path_factory.mktemp("runs"))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, roots))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["runs"]


@pytest.mark.parametrize(
    ("scenario", "num_kills"),
    [("half a tensor file", 2), ("before the rename", 2), ("while syncing", 3)],
)
def test_killed_while_saving(
    outcome: dict[str, dict[str, object]], scenario: str, num_kills: int
) -> None:
    assert outcome[scenario]["num_kills"] == num_kills
    assert outcome[scenario]["differing"] == []


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_times(outcome: dict[str, dict[str, object]], seed: int) -> None:
    assert outcome[f"random time {seed}"]["differing"] == []
    assert outcome[f"random time {seed}"]["num_compared"] == 13


def test_some_kills_hit(outcome: dict[str, dict[str, object]]) -> None:
    assert sum(int(str(run["num_kills"])) for run in outcome.values()) >= 8
