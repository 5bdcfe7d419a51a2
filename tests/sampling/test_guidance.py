"""Laws of guidance: what is evaluated, what scale 1 means, and parity with diffusers' guiders."""

import math
from dataclasses import replace

import pytest
import torch

from rectiflow.base.errors import ConfigError
from rectiflow.flow import rectified_flow
from rectiflow.models.conditioning import Conditioning
from rectiflow.sampling import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    CFGZeroStar,
    ClassifierFreeGuidance,
    Field,
    Guidance,
    IntervalGuidance,
    NoGuidance,
    PerturbedAttentionGuidance,
    RescaledGuidance,
    SkipLayerGuidance,
    linear_times,
)

SCALE = 4.0
HALF = torch.tensor(0.5)
BY_PROMPT = (
    ClassifierFreeGuidance(),
    IntervalGuidance(low=0.0, high=1.0),
    RescaledGuidance(),
    CFGZeroStar(),
    AdaptiveProjectedGuidance(),
    RescaledGuidance(inner=IntervalGuidance(low=0.0, high=1.0, inner=CFGZeroStar())),
)


@pytest.mark.parametrize("guidance", BY_PROMPT)
def test_the_null_is_used_wherever_it_is_evaluated(guidance: Guidance) -> None:
    assert guidance.uses_null(SCALE)
    assert not guidance.uses_null(1.0)


def test_who_never_looks_at_the_null() -> None:
    assert not NoGuidance().uses_null(1.0)
    assert not IntervalGuidance(inner=AutoGuidance(weaker="other")).uses_null(SCALE)
    assert SkipLayerGuidance(layers=(1,)).uses_null(SCALE)
    # Its interval does not hold the middle.
    assert IntervalGuidance(low=0.8, high=0.9).uses_null(SCALE)


def prompts(value: float, num: int = 3) -> Conditioning:
    return Conditioning(context=torch.full((num, 2, 4), value), pooled=torch.full((num, 4), value))


def made_up() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    draw = lambda: torch.randn(3, 4, 5, 6, generator=generator)  # noqa: E731
    conditional = draw()
    return {
        "conditional": conditional,
        "null": 0.6 * conditional + 0.5 * draw(),
        "weak": conditional + 0.3 * draw(),
        "z": draw(),
    }


def combine(guidance: Guidance, tensors: dict[str, torch.Tensor], t: float = 0.5, scale=SCALE):
    at = torch.tensor(t)
    asked = {branch: tensors[branch] for branch in guidance.branches(scale, at)}
    return guidance.combine(asked, scale, tensors["z"], at)


class Recorder:
    """A network whose output is the pooled vector's value; it notes its batches."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.sizes = factor, []

    def __call__(self, z_t, t, conditioning):
        self.sizes.append(len(z_t))
        return self.factor * torch.ones_like(z_t) * conditioning.pooled[:, :1]


def velocity(guidance: Guidance, scale: float, network: Recorder, t=HALF, **others) -> torch.Tensor:
    field = Field(
        backbone=network,
        formulation=rectified_flow(),
        guidance=guidance,
        guidance_scale=scale,
        conditioning=prompts(2.0),
        null=prompts(1.0),
        **others,
    )
    return field(torch.zeros(3, 1), t)


def test_both_prompts_go_as_one_batch_and_scale_1_needs_no_null() -> None:
    network = Recorder()
    assert torch.equal(velocity(NoGuidance(), 1.0, network), torch.full((3, 1), 2.0))
    assert torch.equal(velocity(ClassifierFreeGuidance(), 1.0, network), torch.full((3, 1), 2.0))
    assert torch.equal(velocity(ClassifierFreeGuidance(), 4.0, network), torch.full((3, 1), 5.0))
    assert network.sizes == [3, 3, 6]


@pytest.mark.parametrize("guidance", BY_PROMPT, ids=lambda guidance: type(guidance).__name__)
def test_scale_1_is_the_conditional_velocity(guidance: Guidance) -> None:
    assert guidance.branches(1.0, HALF) == ("conditional",)
    assert guidance.branches(SCALE, HALF) == ("conditional", "null")
    tensors = made_up()
    # And is so continuously: the formula has it as its limit.
    near = guidance.combine(tensors, 1.0 + 1e-6, tensors["z"], HALF)
    torch.testing.assert_close(near, tensors["conditional"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance", BY_PROMPT, ids=lambda guidance: type(guidance).__name__)
def test_a_sample_is_guided_as_if_alone(guidance: Guidance) -> None:
    tensors = made_up()
    alone = {name: tensor[1:2] for name, tensor in tensors.items()}
    torch.testing.assert_close(combine(guidance, tensors)[1:2], combine(guidance, alone))


def test_outside_of_its_interval_guidance_costs_nothing() -> None:
    network, guidance = Recorder(), IntervalGuidance(low=0.3, high=0.6)
    found = [velocity(guidance, SCALE, network, t)[0, 0].item() for t in linear_times(10)[:-1]]
    assert found == [2.0, 2.0, 2.0, 2.0, 5.0, 5.0, 5.0, 5.0, 2.0, 2.0]
    assert network.sizes == [3, 3, 3, 3, 6, 6, 6, 6, 3, 3]
    for inner in (PerturbedAttentionGuidance(layers=(0,)), AutoGuidance(weaker="weaker")):
        guidance = IntervalGuidance(low=0.3, high=0.6, inner=inner)
        assert guidance.branches(SCALE, torch.tensor(0.9)) == ("conditional",)
        assert guidance.branches(SCALE, HALF) == inner.branches(SCALE, HALF)


def test_autoguidance_contrasts_with_the_weaker_network_on_the_same_prompts() -> None:
    network, weaker = Recorder(), Recorder(factor=0.5)
    guidance = AutoGuidance(weaker="weaker")
    assert guidance.weaker_model == IntervalGuidance(inner=guidance).weaker_model == "weaker"
    found = velocity(guidance, 3.0, network, weaker=weaker)
    # 1 + 3·(2 − 1)
    assert torch.equal(found, torch.full((3, 1), 4.0))
    assert network.sizes == weaker.sizes == [3]
    with pytest.raises(ConfigError, match="autoguidance needs the weaker model 'weaker'"):
        velocity(guidance, 3.0, network)
    with pytest.raises(ConfigError, match="CFGZeroStar contrasts with no weaker network"):
        CFGZeroStar().weak_network(network, weaker)


@pytest.mark.parametrize("kind", [SkipLayerGuidance, PerturbedAttentionGuidance])
def test_a_disturbed_network_adds_to_guidance_within_its_interval(kind) -> None:
    tensors, guidance = made_up(), kind(layers=(1,), strength=2.0, low=0.4, high=0.6)
    assert guidance.branches(1.0, HALF) == ("conditional", "weak")
    assert guidance.branches(SCALE, torch.tensor(0.7)) == ("conditional", "null")
    guided = combine(ClassifierFreeGuidance(), tensors)
    expected = guided + 2.0 * (tensors["conditional"] - tensors["weak"])
    torch.testing.assert_close(combine(guidance, tensors), expected)
    assert torch.equal(combine(guidance, tensors, t=0.7), guided)
    with pytest.raises(ConfigError, match="disturbs blocks, and Recorder has none"):
        velocity(guidance, SCALE, Recorder())


def test_projected_guidance_is_classifier_free_without_its_corrections() -> None:
    tensors = made_up()
    free = AdaptiveProjectedGuidance(eta=1.0, norm_threshold=1e6)
    expected = combine(ClassifierFreeGuidance(), tensors)
    torch.testing.assert_close(combine(free, tensors), expected, atol=1e-5, rtol=0)
    # The data is reached without a division by t.
    assert torch.isfinite(combine(AdaptiveProjectedGuidance(), tensors, t=0.0)).all()


def test_a_constant_velocity_has_no_deviation_to_rescale() -> None:
    tensors = made_up()
    for flat in (("conditional", "null"), ("conditional",), ("null",)):
        given = tensors | {branch: torch.full((3, 4, 5, 6), 0.5) for branch in flat}
        assert torch.isfinite(combine(RescaledGuidance(), given)).all()
        alone = combine(RescaledGuidance(), {name: v[:1] for name, v in given.items()})
        assert torch.equal(alone, combine(RescaledGuidance(), given)[:1])
    constant = tensors | {b: torch.full((3, 4, 5, 6), 0.5) for b in ("conditional", "null")}
    expected = combine(ClassifierFreeGuidance(), constant)
    assert torch.equal(combine(RescaledGuidance(), constant), expected)


def test_zero_star_fits_the_null_to_the_conditional() -> None:
    tensors = made_up()
    fitted = combine(CFGZeroStar(), tensors)
    scaled = combine(CFGZeroStar(), tensors | {"null": -7.0 * tensors["null"]})
    torch.testing.assert_close(fitted, scaled, atol=1e-4, rtol=0)


def test_steps_that_rest_are_those_of_the_inner_guidance() -> None:
    assert ClassifierFreeGuidance().num_resting_steps(SCALE) == 0
    inner = RescaledGuidance(inner=CFGZeroStar(zero_init_steps=2))
    assert IntervalGuidance(high=1.0, inner=inner).num_resting_steps(SCALE) == 2


def test_none_rests_where_drawing_begins_without_guidance() -> None:
    inner = CFGZeroStar(zero_init_steps=2)
    assert inner.num_resting_steps(1.0) == 0
    assert IntervalGuidance(high=0.9, inner=inner).num_resting_steps(SCALE) == 0


@pytest.mark.parametrize(
    "guidance",
    [
        *BY_PROMPT,
        IntervalGuidance(low=0.6, high=0.8),
        RescaledGuidance(inner=IntervalGuidance(low=0.6, high=0.8)),
        SkipLayerGuidance(layers=(0,)),
        AutoGuidance(weaker="weaker"),
        IntervalGuidance(
            low=0.3, high=0.8, inner=PerturbedAttentionGuidance(layers=(0,), high=0.5)
        ),
        IntervalGuidance(low=0.3, high=0.8, inner=AutoGuidance(weaker="weaker")),
    ],
    ids=str,
)
def test_phases_are_all_that_is_ever_asked_for(guidance: Guidance) -> None:
    asked = {guidance.branches(SCALE, t) for t in linear_times(200)}
    phases = {
        phase.branches(1.0 if isinstance(phase, NoGuidance) else SCALE, t)
        for phase in guidance.phases
        for t in linear_times(2)
    }
    assert asked <= phases
    assert all(phase.num_resting_steps(SCALE) == 0 for phase in guidance.phases)


@pytest.mark.parity
def test_formulas_are_those_of_diffusers_guiders() -> None:
    from diffusers import guiders

    tensors = made_up()
    conditional, null, weak, z = (tensors[k] for k in ("conditional", "null", "weak", "z"))

    def theirs(guider, *predictions):
        guider.set_state(step=1, num_inference_steps=10, timestep=torch.tensor(500))
        return guider.forward(*predictions).pred

    rescaled = theirs(
        guiders.ClassifierFreeGuidance(guidance_scale=SCALE, guidance_rescale=0.6),
        conditional,
        null,
    )
    torch.testing.assert_close(combine(RescaledGuidance(amount=0.6), tensors), rescaled)
    zero = theirs(guiders.ClassifierFreeZeroStarGuidance(guidance_scale=SCALE), conditional, null)
    torch.testing.assert_close(combine(CFGZeroStar(), tensors), zero)
    skipped = theirs(
        guiders.SkipLayerGuidance(
            guidance_scale=SCALE,
            skip_layer_guidance_scale=2.5,
            skip_layer_guidance_layers=[1],
            skip_layer_guidance_start=0.0,
            skip_layer_guidance_stop=1.0,
        ),
        conditional,
        null,
        weak,
    )
    ours = SkipLayerGuidance(layers=(1,), strength=2.5, low=0.0, high=1.0)
    torch.testing.assert_close(combine(ours, tensors), skipped)
    # The paper's form, on estimated data; theirs adds the scale less 1 in it.
    guided = theirs(
        guiders.AdaptiveProjectedGuidance(
            guidance_scale=SCALE - 1.0,
            adaptive_projected_guidance_rescale=2.0,
            eta=0.3,
            use_original_formulation=True,
        ),
        z - 0.5 * conditional,
        z - 0.5 * null,
    )
    ours = AdaptiveProjectedGuidance(eta=0.3, norm_threshold=2.0)
    torch.testing.assert_close(z - 0.5 * combine(ours, tensors), guided, atol=1e-5, rtol=1e-5)


@pytest.mark.parity
def test_an_interval_of_times_is_one_of_steps() -> None:
    from diffusers.guiders import ClassifierFreeGuidance as Theirs

    theirs, times = Theirs(guidance_scale=SCALE, start=0.2, stop=0.6), linear_times(10)
    ours = IntervalGuidance(low=times[5].item(), high=times[2].item())
    for step, t in enumerate(times[:-1]):
        theirs.set_state(step=step, num_inference_steps=10, timestep=t)
        assert theirs.num_conditions == len(ours.branches(SCALE, t))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: velocity(ClassifierFreeGuidance(), -1.0, Recorder()), "guidance_scale=-1.0 must"),
        (lambda: velocity(ClassifierFreeGuidance(), math.nan, Recorder()), "guidance_scale=nan"),
        (lambda: velocity(NoGuidance(), 3.0, Recorder()), "3 does not go with NoGuidance"),
        (lambda: IntervalGuidance(low=0.5, high=0.5), "low=0.5 and high=0.5 are no interval"),
        (lambda: SkipLayerGuidance(layers=(1,), high=1.5), "high=1.5 are no interval"),
        (lambda: RescaledGuidance(amount=1.1), "amount=1.1 must be from 0"),
        (lambda: CFGZeroStar(zero_init_steps=-1), "zero_init_steps=-1 must be at least 0"),
        (lambda: AdaptiveProjectedGuidance(eta=math.nan), "eta=nan must be a finite number"),
        (lambda: AdaptiveProjectedGuidance(norm_threshold=0.0), "norm_threshold=0.0 must be"),
        (lambda: AdaptiveProjectedGuidance(norm_threshold=math.inf), "norm_threshold=inf must be"),
        (lambda: SkipLayerGuidance(layers=()), "layers is empty"),
        (
            lambda: replace(PerturbedAttentionGuidance(layers=(1,)), strength=math.inf),
            "strength=inf must be a finite number",
        ),
    ],
)
def test_bad_settings_are_refused(make, text) -> None:
    with pytest.raises(ConfigError, match=text):
        make()
