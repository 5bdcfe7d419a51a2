"""Laws of guidance and the field."""

import math

import pytest
import torch

from rectiflow.base.errors import ConfigError
from rectiflow.flow import rectified_flow
from rectiflow.models.conditioning import Conditioning
from rectiflow.sampling import (
    ClassifierFreeGuidance,
    Field,
    NoGuidance,
)


def prompts(value: float, num: int = 3) -> Conditioning:
    return Conditioning(context=torch.full((num, 2, 4), value), pooled=torch.full((num, 4), value))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ClassifierFreeGuidance(guidance_scale=-1.0), "guidance_scale=-1.0 must be"),
        (lambda: ClassifierFreeGuidance(guidance_scale=math.nan), "guidance_scale=nan must be"),
    ],
)
def test_bad_settings_are_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_guidance_evaluates_one_batch_and_extrapolates():
    sizes = []

    def backbone(z_t, t, conditioning):
        sizes.append(len(z_t))
        return torch.ones_like(z_t) * conditioning.pooled[:, :1]

    def velocity(guidance):
        field = Field(
            backbone=backbone,
            formulation=rectified_flow(),
            guidance=guidance,
            conditioning=prompts(2.0),
            null=prompts(1.0),
        )
        return field(torch.zeros(3, 1), torch.tensor(0.5))

    assert torch.equal(velocity(NoGuidance()), torch.full((3, 1), 2.0))
    assert torch.equal(
        velocity(ClassifierFreeGuidance(guidance_scale=1.0)), torch.full((3, 1), 2.0)
    )
    assert torch.equal(
        velocity(ClassifierFreeGuidance(guidance_scale=4.0)), torch.full((3, 1), 5.0)
    )
    assert sizes == [3, 6, 6]
