"""Averages kept on the way resume exactly, and make the models of other averages afterwards."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training.fake_feed import FakeFeed, tiny_recipe
from training.kill_and_resume import contents

from rectiflow.base.config import to_json
from rectiflow.base.errors import CheckpointError, ConfigError, UserError
from rectiflow.base.log import read_events
from rectiflow.cli.main import main
from rectiflow.data.records import Batch
from rectiflow.training.ema import EmaConfig
from rectiflow.training.loop import train
from rectiflow.training.post_hoc import average_run
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.spikes import SpikeGuard
from rectiflow.training.start_from import read_first_weights
from rectiflow.training.tensor_files import read_tensors

KEPT = tiny_recipe(
    precision="fp32",
    ema=EmaConfig(sigma_rels=(0.05, 0.2), snapshot_every=2),
    validate_every=12,
)


class FailingFeed(FakeFeed):
    """Cannot read the batch of one step."""

    def __init__(self, at_step: int) -> None:
        super().__init__()
        self._at_step = at_step

    def batch_at(self, step: int) -> Batch:
        if step == self._at_step:
            raise UserError("the disk is gone")
        return super().batch_at(step)


def run_quietly(recipe: TrainRecipe, out: Path, feed: FakeFeed | None = None) -> Path:
    return train(recipe, feed or FakeFeed(), out, progress=False).run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_quietly(KEPT, tmp_path_factory.mktemp("kept") / "run")


def averages_in(run: Path, sigma_rel: float) -> dict[str, torch.Tensor]:
    return read_tensors(run / "checkpoints" / "step_00000012" / f"ema_{sigma_rel}.safetensors")


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([(a[name] - b[name]).norm() for name in a | b]).norm())


def test_a_run_keeps_and_validates_each_average(run: Path) -> None:
    assert len(list((run / "averages").iterdir())) == 6
    (event,) = read_events(run / "metrics.jsonl", "validation")
    losses = {event["raw"]["loss"], event["ema"]["loss"]}
    losses |= {event["power_emas"][s]["loss"] for s in ("0.05", "0.2")}
    assert len(losses) == 4
    for sigma_rel in (0.05, 0.2):
        last = run / "averages" / "step_00000012" / f"sigma_rel_{sigma_rel}.safetensors"
        assert distance(read_tensors(last), averages_in(run, sigma_rel)) == 0.0


def test_a_run_that_fails_and_goes_on_keeps_the_same(run: Path, tmp_path: Path) -> None:
    """It fails after step 9, and has kept averages since the checkpoint of step 5."""
    with pytest.raises(UserError, match="the disk is gone"):
        run_quietly(KEPT, tmp_path / "run", FailingFeed(9))
    kept = {path.name for path in (tmp_path / "run" / "averages").iterdir()}
    assert kept == {f"step_{step:08d}" for step in (2, 4, 6, 8)}
    again = run_quietly(KEPT, tmp_path / "run")
    assert contents(again) == contents(run)


def test_a_step_taken_back_takes_its_averages_along(tmp_path: Path) -> None:
    recipe = replace(KEPT, spikes=SpikeGuard(threshold=1e6, window=10), validate_every=0)
    run = run_quietly(recipe, tmp_path / "run", FakeFeed(poisoned_step=8))
    assert (run / "spikes.jsonl").exists()
    assert len(list((run / "averages").iterdir())) == 6


def weights_of(model: Path) -> dict[str, Tensor]:
    return {name: kept.load() for name, kept in read_first_weights(str(model)).tensors.items()}


def test_a_model_of_a_kept_average_is_that_average(run: Path, tmp_path: Path) -> None:
    made = average_run(run, 0.2, tmp_path / "model")
    assert (made.step, made.num_kept) == (12, 12)
    assert made.error < 1e-6
    expected = averages_in(run, 0.2)
    assert distance(weights_of(tmp_path / "model"), expected) < 1e-6
    card, own = (json.loads((p / "model.json").read_text()) for p in (made.model, run / "model"))
    assert card["provenance"].pop("post_hoc_ema")["sigma_rel"] == 0.2
    assert card.pop("sha256") != own.pop("sha256")
    assert card["provenance"].pop("training_s") <= own["provenance"].pop("training_s")
    assert card == own


def test_an_average_that_was_not_kept_is_near_the_one_of_a_run_that_kept_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The same weights at every step, as averages change none.
    other = replace(KEPT, ema=EmaConfig(sigma_rels=(0.1,), snapshot_every=12), validate_every=0)
    expected = averages_in(run_quietly(other, tmp_path / "run"), 0.1)
    out = tmp_path / "model"
    assert main(["runs", "average", str(run), "--sigma-rel", "0.1", "--out", str(out)]) == 0
    assert "model: the average with sigma_rel 0.1 at step 12, of 12" in capsys.readouterr().out
    made = weights_of(out)
    assert distance(made, expected) < 0.05 * distance(averages_in(run, 0.05), expected)


def test_what_cannot_be_averaged_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sigma_rel is 0.5; it is the length of an average"):
        average_run(run, 0.5, tmp_path / "model")
    with pytest.raises(UserError, match="the folder is not empty; choose another or remove it"):
        average_run(run, 0.1, run)
    bare = run_quietly(tiny_recipe(max_steps=1, validate_every=0), tmp_path / "bare")
    with pytest.raises(UserError, match="has kept no averages to make another one of; train a new"):
        average_run(bare, 0.1, tmp_path / "model")
    young = tmp_path / "young"
    shutil.copytree(run, young)
    file = young / "averages" / "step_00000004" / "sigma_rel_0.05.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match="is cut or damaged: .*; remove the folder .*_00000004"
    ):
        average_run(young, 0.1, tmp_path / "model")
    shutil.rmtree(young / "model")
    with pytest.raises(UserError, match="young has no model yet: it has not reached its first"):
        average_run(young, 0.1, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("average RUN", "an average needs one run, its length and a place: rectiflow runs average"),
        ("average --sigma-rel 0.1 --out m", "an average needs one run, its length and a place"),
        (". --sigma-rel 0.1", "--sigma-rel is of rectiflow runs average RUN"),
    ],
)
def test_mistakes_on_the_command_line(
    line: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", *line.split()]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"sigma_rels": (0.1,)}, r"ema.sigma_rels are \(0.1,\) and ema.snapshot_every is 0; give"),
        ({"snapshot_every": 5}, r"ema.sigma_rels are \(\) and ema.snapshot_every is 5; give both"),
        ({"sigma_rels": (0.1, 0.1), "snapshot_every": 5}, "give each of them once"),
        ({"sigma_rels": (0.4,), "snapshot_every": 5}, "sigma_rel is 0.4; it is the length"),
    ],
)
def test_impossible_averages_are_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        EmaConfig(**settings)


def test_a_recipe_without_them_is_written_as_before() -> None:
    assert to_json(tiny_recipe())["ema"] == {"decay": 0.999, "every": 1}
