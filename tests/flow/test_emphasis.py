"""The stress of training is the sampler's density times the weighting."""

import pytest
import torch

from rectiflow.base.config import from_json, to_json
from rectiflow.flow import paper_grid, parse_formulation
from rectiflow.flow.emphasis import Emphasis, emphasis_of


def test_without_a_weighting_times_count_as_drawn():
    found = emphasis_of(parse_formulation("rf/lognorm(0,1)"))
    assert found.t_drawn == found.t_weighted
    normal = torch.special.ndtri(torch.tensor(found.levels, dtype=torch.float64))
    assert found.t_drawn == pytest.approx(torch.sigmoid(normal).tolist(), abs=1e-4)
    # log-SNR of rectified flow is −2·logit(t)
    assert found.log_snr_weighted == pytest.approx((-2 * normal).tolist(), abs=1e-3)


def test_a_density_as_weight_counts_as_if_drawn_from_it():
    drawn = emphasis_of(parse_formulation("rf/lognorm(0.5,0.6)"))
    weighted = emphasis_of(parse_formulation("rf~lognorm(0.5,0.6)"))
    assert weighted.t_weighted == pytest.approx(drawn.t_weighted, abs=1e-3)
    assert weighted.t_drawn == pytest.approx(weighted.levels, abs=1e-3)


def test_every_formulation_of_the_paper_has_one_that_survives_json():
    for formulation in paper_grid():
        found = emphasis_of(formulation)
        assert found.formulation == str(formulation)
        assert from_json(Emphasis, to_json(found)) == found
        assert list(found.t_weighted) == sorted(found.t_weighted)
        assert list(found.log_snr_weighted) == sorted(found.log_snr_weighted, reverse=True)


def test_it_reads_as_one_line():
    line = str(emphasis_of(parse_formulation("rf")))
    assert line.startswith("rf: trains on t = 0.50 (0.05 to 0.95), log-SNR = 0.00 (5.89 to -5.89)")
