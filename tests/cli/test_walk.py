"""The README's walk by hand, very small, from drawn pictures to scores; then what may go wrong."""

import json
import shutil
from pathlib import Path

import pytest

from rectiflow.cli.main import main
from rectiflow.evaluation.results import read_evaluation
from rectiflow.generation.pictures import read_png

TRAIN = "--backbone.depth 1 --batch-size 4 --num-validation 4 --validate-every 2 --log-every 1"


@pytest.mark.system
def test_from_pictures_to_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, store, run = tmp_path / "images", tmp_path / "store", tmp_path / "run"
    scores = tmp_path / "scores.json"

    def succeed(line: str, *more: str) -> str:
        assert main([*line.split(), *more]) == 0
        return capsys.readouterr().out

    succeed(f"shapeworld draw --count 16 --out {images}")
    (images / "images" / "000003.png").write_bytes(b"not a picture")
    said = succeed(f"encode {images} --out {store}")
    assert "15 samples" in said
    assert "1 files rejected" in said
    (rejection,) = map(json.loads, (store / "quarantine.jsonl").read_text().splitlines())
    assert rejection["file"] == "images/000003.png"

    train = f"train demo --data {store} --out {run} {TRAIN}"
    assert str(run / "model") in succeed(f"{train} --max-steps 2")
    first = (run / "model" / "weights.safetensors").read_bytes()
    succeed(f"{train} --max-steps 3")
    assert (run / "model" / "weights.safetensors").read_bytes() != first
    metrics = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics if '"train"' in line] == [1, 2, 3]

    (picture,) = succeed(f"sample {run} --out {tmp_path / 'out'}", "a red circle").splitlines()
    assert read_png(picture).shape == (64, 64, 3)
    assert "overall (seen)" in succeed(f"evaluate {run} --per-task 1 --out {scores}")
    assert read_evaluation(scores).world == "small"

    # The same RUN with another recipe, a cut model, and a store with a changed byte: one line each.
    def fail(line: str, *more: str) -> str:
        assert main([*line.split(), *more]) == 2
        err = capsys.readouterr().err
        (error,) = [line for line in err.splitlines() if not line.startswith("rectiflow: skip")]
        assert error.startswith("rectiflow: error: ")
        return error

    deeper = f"{train} --max-steps 4".replace("depth 1", "depth 2")
    assert "was made by another recipe: backbone.depth is 1" in fail(deeper)
    weights = run / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "is cut or damaged" in fail(f"sample {run}", "a red circle")
    shutil.rmtree(run)
    shard = next(store.glob("latents-*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert "is damaged" in fail(f"{train} --max-steps 2")
    assert not (run / "model").exists()
