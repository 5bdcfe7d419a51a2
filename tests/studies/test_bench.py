"""A run's held-out losses are read as numbers, also those that are not finite."""

import math
from pathlib import Path

import pytest

from rectiflow.base.errors import DivergedError
from rectiflow.base.log import EventLog
from rectiflow.data.records import Batch
from rectiflow.recipes.small import small_run
from rectiflow.studies.bench import TrainedRun, Validation, best_step
from rectiflow.training.feed import Feed


class NoData(Feed):
    def batch_at(self, step: int) -> Batch:
        raise NotImplementedError


def run_with(folder: Path, *losses: float) -> TrainedRun:
    """A run that logged a held-out loss every ten steps."""
    with EventLog(folder / "metrics.jsonl") as log:
        for look, loss in enumerate(losses, start=1):
            log.write(
                "validation",
                step=10 * look,
                ema={"loss": loss},
                raw={"loss": loss},
                elapsed_s=1.0,
            )
    recipe = small_run(depth=1, num_steps=10, num_looks=1, seed=0)
    return TrainedRun(folder=folder, recipe=recipe, feed=NoData())


def test_losses_that_are_not_finite_are_numbers_too(tmp_path: Path) -> None:
    found = run_with(tmp_path, 0.5, math.nan, math.inf).validations()
    assert [v.is_finite for v in found] == [True, False, False]
    assert math.isnan(found[1].ema)
    assert found[2].raw == math.inf


def test_the_best_step_has_the_least_finite_loss(tmp_path: Path) -> None:
    losses = (math.nan, 0.5, -math.inf, 0.4, math.inf)
    assert best_step(run_with(tmp_path, *losses).validations()) == 40
    none = [Validation(step=1, ema=math.nan, raw=0.1, elapsed_s=0.0)]
    with pytest.raises(DivergedError, match="none of 1 held-out losses of averaged weights"):
        best_step(none)


def test_a_run_that_ends_without_a_finite_loss_has_diverged(tmp_path: Path) -> None:
    found = run_with(tmp_path / "through", 0.5, math.nan, 0.4).finite_validations()
    assert [v.step for v in found] == [10, 30]
    with pytest.raises(DivergedError, match=r"held-out loss after step 20 is nan.*lower learning"):
        run_with(tmp_path / "into", 0.5, math.nan).finite_validations()
