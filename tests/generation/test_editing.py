"""Pictures that start from pictures: where, with which noise, and what of the source stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flow.test_paper_grid import Expectation, draw_data
from tiny_model import tiny_backbone, tiny_model
from torch import Tensor

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.flow import parse_formulation
from rectiflow.generation.editing import Edit, EncodedEdit, encode_edit, first_step
from rectiflow.generation.latents import draw_latents
from rectiflow.generation.model import Model
from rectiflow.generation.noise import initial_noise, noise_source
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.text_to_image import (
    encode_prompts,
    generate,
)
from rectiflow.models.autoencoder import tiling
from rectiflow.models.mmdit import MMDiT
from rectiflow.sampling import (
    DormandPrince,
    Euler,
    InpaintingSolver,
    noisy_on_line,
    parse_guidance,
    parse_solver,
)
from rectiflow.sampling.names import SOLVERS

PROMPTS = ["a red circle", "three green crosses", ""]
SEEDS = [3, 1, 2]
GUIDANCES = (
    "none",
    "cfg",
    "zero-star",
    "apg",
    "auto:weaker=weak",
    "skip-layers:layers=1,low=0.0,high=0.9",
    "perturb-attention:layers=0",
    "rescale+interval:high=0.7",
)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def painter() -> Model:
    """A model whose backbone is told the mask."""
    config = replace(tiny_backbone().config, in_channels=33, out_channels=16)
    torch.manual_seed(4)
    backbone = MMDiT(config).eval()
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    return replace(tiny_model(), name="painter", backbone=backbone)


def picture(height_px: int = 64, width_px: int = 64) -> np.ndarray:
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


def mask() -> np.ndarray:
    painted = np.zeros((64, 64), dtype=np.uint8)
    painted[13:42, 8:40] = 255
    return painted


def test_the_grid_begins_where_diffusers_begins() -> None:
    assert [first_step(50, s) for s in (1.0, 0.99, 0.8, 0.6, 0.01)] == [0, 0, 10, 20, 49]
    assert [first_step(3, s) for s in (1.0, 0.7, 0.5, 0.1)] == [0, 0, 1, 2]
    with pytest.raises(UserError, match="strength=1e-20 leaves none of 28 steps; give a greater"):
        first_step(28, 1e-20)


def test_full_strength_is_text_to_image(model: Model) -> None:
    edit = Edit(source=picture(), strength=1.0)
    expected = generate(model, PROMPTS, SEEDS)
    assert np.array_equal(generate(model, PROMPTS, SEEDS, edit=edit), expected)
    white = replace(edit, mask=np.full((64, 64), 255, dtype=np.uint8))
    assert np.array_equal(generate(model, PROMPTS, SEEDS, edit=white), expected)


def test_drawing_starts_from_the_seeds_noise_over_the_sources_latents(model: Model) -> None:
    edit = encode_edit(model, Edit(source=picture(), strength=0.5))
    noise = initial_noise(model, SEEDS, model.settings)
    times = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    z, left, solver = edit.begin(model.backbone, Euler(), noise, noise, times, num_resting_steps=0)
    assert (left.tolist(), solver) == ([0.5, 0.25, 0.0], Euler())
    images = torch.from_numpy(picture()).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    x0 = model.autoencoder.encode(images).mean
    torch.testing.assert_close(z, 0.5 * noise + 0.5 * x0)


def test_large_sources_are_encoded_in_strips_to_the_same(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = Edit(source=picture(), strength=0.5)
    whole = encode_edit(model, edit).x0
    monkeypatch.setattr(tiling, "MAX_PIXELS_AT_ONCE", 64 * 64 - 1)
    in_strips = encode_edit(model, edit).x0
    assert not torch.equal(in_strips, whole)
    torch.testing.assert_close(in_strips, whole, atol=1e-5, rtol=1e-5)


def test_steps_that_rest_do_so_where_the_whole_grid_has_them(model: Model) -> None:
    encoded = encode_edit(model, Edit(source=picture(), strength=1.0, mask=mask()))
    noise = initial_noise(model, [1], model.settings)
    times = torch.linspace(1, 0, 6)
    begin = lambda strength: replace(encoded, strength=strength).begin(  # noqa: E731
        model.backbone, Euler(), noise, noise, times, num_resting_steps=2
    )
    z, left, _ = begin(1.0)
    assert torch.equal(left, times[2:])
    assert encoded.mask is not None
    kept = (encoded.mask == 0).expand_as(z)
    assert torch.equal(z[~kept], noise[~kept])
    assert torch.equal(z[kept], noisy_on_line(encoded.x0, noise, times[2])[kept])
    assert torch.equal(begin(0.8)[1], times[2:])
    assert torch.equal(begin(0.4)[1], times[3:])


@pytest.mark.parametrize("name", ["rf", "eps/cos", "v/cos", "edm(-1.20,1.20)"])
def test_noisy_data_of_any_formulation_flow_back_to_data(model: Model, name: str) -> None:
    """By the exact velocity what starts as the data's own distribution at t ends as it at 0."""
    formulation = parse_formulation(name)
    expectation = Expectation(formulation)

    class Exact(MMDiT):
        def forward(self, z_t: torch.Tensor, t: torch.Tensor, conditioning: object) -> torch.Tensor:
            return expectation(z_t, t.clamp(min=1e-4), conditioning)

    exact = replace(model, backbone=Exact(model.backbone.config), formulation=formulation)
    settings = SamplingSettings(num_steps=30, guidance_scale=1.0, height_px=256, width_px=256)
    conditioning, null = encode_prompts(model, ["a ring"])
    data = draw_data(16 * 32 * 32, seed=3).float()
    noise = initial_noise(model, [1], settings)
    at = torch.linspace(0.02, 0.98, 25)
    distances = []
    for strength in (0.3, 0.7):
        edit = EncodedEdit(x0=data.reshape(1, 16, 32, 32), strength=strength)
        drawn = draw_latents(exact, conditioning, null, noise, settings, edit=edit)
        found, expected = (values.flatten().quantile(at) for values in (drawn, data))
        assert (found - expected).abs().max() < 0.1
        distances.append((drawn - edit.x0).std().item())
    # And the noisier it was, the farther each value is from its own.
    assert distances[0] < 0.6 * distances[1]


#: Each solver and each guidance with several of the others; none knows of any.
PAIRS = [
    *(
        (solver, guidance, False)
        for i, solver in enumerate(SOLVERS)
        for j, guidance in enumerate(GUIDANCES)
        if (i + j) % 3 == 0
    ),
    *(("heun", guidance, True) for guidance in GUIDANCES),
    *((solver, "cfg", True) for solver in SOLVERS),
]


@pytest.fixture(scope="module")
def begun(model: Model, painter: Model) -> dict[bool, tuple[EncodedEdit, Tensor, Any]]:
    """An edit, noise and prompts, encoded once for each kind of model."""
    edit = Edit(source=picture(), strength=0.6, mask=mask())
    return {
        is_told: (
            encode_edit(base, edit),
            initial_noise(base, [1], base.settings),
            encode_prompts(base, PROMPTS[:1]),
        )
        for is_told, base in ((False, model), (True, painter))
    }


@pytest.mark.parametrize(("solver", "guidance", "is_told"), PAIRS)
def test_any_solver_goes_with_any_guidance(
    model: Model,
    painter: Model,
    begun: dict[bool, tuple[EncodedEdit, Tensor, Any]],
    solver: str,
    guidance: str,
    is_told: bool,
) -> None:
    base = replace(painter if is_told else model, weaker=replace(model, name="weak"))
    chosen = parse_solver(solver)
    settings = replace(
        base.settings,
        solver=DormandPrince(tolerance=10.0) if solver == "dormand-prince" else chosen,
        guidance=parse_guidance(guidance),
        guidance_scale=1.0 if guidance == "none" else 3.0,
    )
    encoded, noise, (conditioning, null) = begun[is_told]
    source = noise_source(base, [1], settings)
    with torch.inference_mode():
        drawn, other = (
            draw_latents(base, prompts, null, noise, settings, source=source, edit=encoded)
            for prompts in (conditioning, null)
        )
    assert torch.isfinite(drawn).all()
    assert encoded.mask is not None
    painted = (encoded.mask == 1).expand_as(drawn)
    assert not torch.allclose(drawn[painted], other[painted], atol=1e-3)
    is_kept = torch.equal(drawn[~painted], encoded.x0[~painted])
    assert is_kept != is_told


@pytest.mark.parametrize(
    ("solver", "guidance", "is_told"),
    [
        ("euler", "cfg", False),
        ("dpm++2m", "zero-star+rescale+interval:high=0.7", False),
        ("heun", "perturb-attention:layers=1,high=0.9", True),
        ("dormand-prince:tolerance=0.3", "apg", True),
    ],
)
def test_same_bytes_alone_in_any_batch_at_any_place(
    model: Model, painter: Model, solver: str, guidance: str, is_told: bool
) -> None:
    base = painter if is_told else model
    settings = replace(
        base.settings, num_steps=2, solver=parse_solver(solver), guidance=parse_guidance(guidance)
    )
    # Grey, and at places that are no multiple of anything.
    grey = np.clip(np.random.default_rng(1).normal(0.5, 0.5, (64, 64)), 0, 1)
    edit = Edit(source=picture(), strength=0.7, mask=grey, keep_source=False)
    prompts = [PROMPTS[i % 3] for i in range(5)]
    together = generate(base, prompts, range(5), settings, edit=edit)
    for rows in ([4], [3, 0]):
        again = generate(base, [prompts[i] for i in rows], rows, settings, edit=edit)
        assert np.array_equal(again, together[rows])
    assert not np.array_equal(together[0], together[3])


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_kept_pixels_are_the_sources_own(model: Model, painter: Model, strength: float) -> None:
    edit = Edit(source=picture(), strength=strength, mask=mask())
    painted = mask() == 255
    for base in (model, painter):
        image = generate(base, ["a ring"], [1], edit=edit)[0]
        raw = generate(base, ["a ring"], [1], edit=replace(edit, keep_source=False))[0]
        assert np.array_equal(image[~painted], picture()[~painted])
        assert np.array_equal(image[painted], raw[painted])
        assert not np.array_equal(raw[~painted], picture()[~painted])
        assert not np.array_equal(image[painted], picture()[painted])


def test_grey_pixels_are_mixed_and_floats_say_the_same_as_bytes(model: Model) -> None:
    grey = np.full((64, 64), 153, dtype=np.uint8)
    edit = Edit(source=picture(), strength=0.6, mask=grey)
    drawn = np.full((1, 64, 64, 3), 200, dtype=np.uint8)
    assert np.array_equal(edit.finish(drawn)[0], np.rint(0.6 * 200.0 + 0.4 * picture()))
    same = replace(edit, mask=(grey / 255.0))
    assert np.array_equal(
        generate(model, ["a ring"], [1], edit=edit), generate(model, ["a ring"], [1], edit=same)
    )


def test_the_thinnest_stroke_is_painted(model: Model) -> None:
    stroke = np.zeros((64, 64))
    stroke[21, 3:30] = 1.0
    encoded = encode_edit(model, Edit(source=picture(), mask=stroke))
    assert encoded.mask is not None
    expected = torch.zeros(8, 8)
    expected[2, :4] = 1.0
    assert torch.equal(encoded.mask[0, 0], expected)


def test_a_source_that_is_not_square(model: Model) -> None:
    settings = SamplingSettings(num_steps=2, height_px=32, width_px=96)
    edit = Edit(source=picture(32, 96), strength=0.5)
    assert generate(model, ["a ring"], [0], settings, edit=edit).shape == (1, 32, 96, 3)


def test_a_network_that_is_told_needs_no_solver_around(model: Model, painter: Model) -> None:
    encoded = encode_edit(model, Edit(source=picture(), mask=mask()))
    noise = initial_noise(model, [1], model.settings)
    times = torch.linspace(1, 0, 4)
    solvers = [
        encoded.begin(base.backbone, Euler(), noise, noise, times, num_resting_steps=0)[2]
        for base in (model, painter)
    ]
    assert isinstance(solvers[0], InpaintingSolver)
    assert solvers[1] == Euler()


def test_a_blanked_picture_is_encoded_only_for_who_is_told_it(model: Model, painter: Model) -> None:
    edit = Edit(source=picture(), mask=mask())
    told = encode_edit(painter, edit).masked_latents
    assert told is not None
    assert encode_edit(model, edit).masked_latents is None
    beside = encode_edit(replace(model, weaker=painter), edit).masked_latents
    assert beside is not None
    assert torch.equal(beside, told)


def test_a_model_that_is_told_a_mask_needs_one(model: Model, painter: Model) -> None:
    with pytest.raises(UserError, match="painter paints into pictures and was given no picture;"):
        generate(painter, ["a ring"], [1])
    told = "painter paints into pictures and was given no mask; give an edit with a source and a"
    with pytest.raises(UserError, match=told):
        generate(painter, ["a ring"], [1], edit=Edit(source=picture()))
    guided = replace(model, weaker=painter)
    settings = replace(model.settings, guidance=parse_guidance("auto:weaker=painter"))
    with pytest.raises(UserError, match=told):
        generate(guided, ["a ring"], [1], settings, edit=Edit(source=picture()))
    edit = Edit(source=picture(), mask=mask())
    assert generate(guided, ["a ring"], [1], settings, edit=edit).shape == (1, 64, 64, 3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strength": 0.0}, r"strength=0.0 must be above 0 .*and at most 1"),
        ({"strength": float("nan")}, "strength=nan must be above 0"),
        ({"strength": 1.5}, "strength=1.5 must be above 0"),
        ({"source": picture()[..., :1]}, r"source is uint8 \[64, 64, 1\]; give a picture as uint8"),
        ({"source": picture() / 255.0}, r"source is float64 \[64, 64, 3\]; give"),
        ({"source": picture()[0]}, r"source is uint8 \[64, 3\]; give"),
        ({"mask": mask()[1:]}, r"mask is \[63, 64\], the source \[64, 64\]; give a mask \[h w\]"),
        ({"mask": mask()[..., None]}, r"mask is \[64, 64, 1\], the source \[64, 64\]"),
        ({"mask": mask() > 0}, "mask is bool; give uint8 from 0 to 255, or floats from 0 to 1"),
        ({"mask": mask().astype(np.int64)}, "mask is int64; give uint8"),
        ({"mask": mask().astype(np.float32)}, "mask holds floats from 0 to 255; they must be from"),
        ({"mask": -(mask() / 255.0)}, "mask holds floats from -1 to"),
        ({"mask": np.full((64, 64), np.nan)}, "mask holds floats from nan to nan"),
        ({"mask": mask() * 0}, "mask is empty: its whitest pixel is 0 of 255; make white what"),
        ({"mask": mask() // 255}, "mask is empty: its whitest pixel is 1 of 255"),
        ({"mask": mask() / 1000.0}, "mask is empty: its whitest pixel is 0.255 of 1"),
        ({"keep_source": False}, "keep_source=False says nothing without a mask; leave it out"),
    ],
)
def test_what_is_no_edit_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Edit(**({"source": picture()} | changes))


def test_an_edit_must_fit_the_settings(model: Model) -> None:
    told = "the source is 96×32 px, the settings draw 64×64 px; resize it, or set height_px and"
    with pytest.raises(UserError, match=told):
        generate(model, ["a"], [1], edit=Edit(source=picture(32, 96)))
    with pytest.raises(UserError, match="strength=1e-20 leaves none of 3 steps"):
        generate(model, ["a"], [1], edit=Edit(source=picture(), strength=1e-20))
