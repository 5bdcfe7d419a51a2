"""The real launcher, and many kills: minutes, so only when asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rectiflow
from rectiflow.recipes.encoding import encode_with_parts
from rectiflow.shapeworld.folder import write_folder
from rectiflow.shapeworld.world import SMALL
from rectiflow.training.tensor_files import read_tensors

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROOTS = [Path(rectiflow.__file__).parents[1], Path(__file__).parents[1]]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, ROOTS))}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SETTINGS = {
    "max-steps": 6,
    "batch-size": 4,
    "num-validation": 4,
    "sample-every": 0,
    "precision": "fp32",
    "backbone.depth": 1,
    "backbone.width": 64,
}


def start(arguments: list[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_torchrun_makes_the_model_of_one_process(tmp_path: Path) -> None:
    write_folder(SMALL, tmp_path / "folder", count=13, split="train", seed=0)
    encode_with_parts(tmp_path / "folder", tmp_path / "store")
    settings = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    launchers: dict[str, list[str]] = {"one": [], "two": TORCHRUN}
    for name, launcher in launchers.items():
        call = ["train", "demo", "--data", str(tmp_path / "store"), "--out", str(tmp_path / name)]
        done = start([*launcher, "-m", "rectiflow", *call, *settings], timeout_s=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("6 steps done; the model lies in") == 1
    one, two = (read_tensors(tmp_path / name / "model/weights.safetensors") for name in launchers)
    for name, tensor in one.items():
        assert (tensor - two[name]).norm() <= 1e-5 * tensor.norm() + 1e-7


def test_an_error_under_torchrun_is_one_line(tmp_path: Path) -> None:
    call = ["train", "demo", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")]
    done = start([*TORCHRUN, "-m", "rectiflow", *call], timeout_s=120)
    assert done.returncode
    assert done.stderr.count("rectiflow: error: ") == 1
    assert "there is no latent store in" in done.stderr


def test_runs_survive_300_random_kills(tmp_path: Path) -> None:
    program = Path(__file__).with_name("random_kills.py")
    done = start([str(program), str(tmp_path), "300"], timeout_s=7200)
    assert done.returncode == 0, done.stderr
    for runs in json.loads(done.stdout.splitlines()[-1]).values():
        assert runs["num_killed"] == 150
        assert runs["differing"] == []
