"""The sample that costs are counted for is the one that the studies train on."""

from rectiflow.models.shipped import load_autoencoder, load_conditioner
from rectiflow.models.text import assemble
from rectiflow.recipes.small import small_run
from rectiflow.studies.bench import PictureSet
from rectiflow.studies.costs import SAMPLE, size_row


def test_the_sample_has_the_shipped_parts_shapes() -> None:
    side = PictureSet(count=1).resolution_px // load_autoencoder().config.downsample_factor
    assert (SAMPLE.height, SAMPLE.width) == (side, side)
    assert SAMPLE.num_text == assemble(load_conditioner().null()).context.shape[1]


def test_costs_grow_with_depth() -> None:
    rows = [size_row(small_run(depth=d, num_steps=1, num_looks=1).backbone) for d in (1, 2, 3)]
    for column in ("width", "parameters", "forward_flops"):
        values = [row[column] for row in rows]
        assert values == sorted(set(values))
