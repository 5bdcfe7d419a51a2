"""A picture depends on model, prompt, settings and seed alone; what cannot be drawn is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import LENGTH, tiny_conditioner, tiny_model

from rectiflow.base.errors import DivergedError, UserError
from rectiflow.generation import latents as latents_module
from rectiflow.generation import text_to_image
from rectiflow.generation.latents import draw_latents
from rectiflow.generation.model import Model
from rectiflow.generation.noise import initial_noise
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.text_to_image import (
    decode_latents,
    draw_pictures,
    encode_prompts,
    generate,
    to_pixels,
)
from rectiflow.models.autoencoder import tiling
from rectiflow.models.conditioning import EmbeddedConditioning
from rectiflow.models.frame import Backbone
from rectiflow.models.layers.attention import repeat_last
from rectiflow.models.offloading import offload_modulation
from rectiflow.sampling import (
    AdaptiveProjectedGuidance,
    DormandPrince,
    Guidance,
    parse_guidance,
    parse_solver,
)
from rectiflow.sampling.guidance import Velocities

PROMPTS = ("a red circle", "three green crosses", "", 'the word "CAT" in yellow', "a 🦊", "a ring")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.mark.parametrize(
    ("dtype", "patch_size", "guidance_scale"),
    [(torch.bfloat16, 2, 3.0), (torch.float32, 2, 3.0), (torch.float32, 1, 1.0)],
    ids=str,
)
def test_same_bytes_alone_in_any_batch_at_any_place(
    dtype: torch.dtype, patch_size: int, guidance_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever this processor would choose.
    chosen = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    monkeypatch.setattr(text_to_image, "autocast", lambda *_: chosen)
    assert pictures_that_differ(patch_size, guidance_scale, counts=(1, 3, 17)) == []


def test_same_bytes_with_two_threads(run_python: Callable[..., CompletedProcess[str]]) -> None:
    """In a process of its own, whose second thread sleeps rather than spins when it waits."""
    done = run_python(
        "import os, sys;"
        "os.environ.update(OMP_NUM_THREADS='2', MKL_NUM_THREADS='2', OMP_WAIT_POLICY='PASSIVE');"
        f"sys.path[:0] = [{str(Path(__file__).parents[1])!r}];"
        "from generation.test_text_to_image import pictures_that_differ;"
        "import torch; assert torch.get_num_threads() == 2;"
        "print(pictures_that_differ(2, 3.0, counts=(3,)))"
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("solver", "guidance"),
    [
        # Guided in the second step only.
        ("dpm++2m", "zero-star:zero_init_steps=0+rescale+interval:high=0.7"),
        ("heun", "perturb-attention:layers=1,high=0.9"),
        ("dormand-prince:tolerance=0.3", "apg"),
        ("ancestral", "cfg"),
    ],
)
def test_same_bytes_with_any_solver_and_guidance(solver: str, guidance: str) -> None:
    chosen = {"solver": parse_solver(solver), "guidance": parse_guidance(guidance)}
    assert pictures_that_differ(2, 3.0, counts=(1, 5), **chosen) == []


def test_a_solver_that_chooses_its_steps_tells_how_many(model: Model) -> None:
    counts: list[int] = []
    for tolerance in (1.0, 1e-3):
        settings = replace(
            model.settings, num_steps=1, solver=DormandPrince(tolerance=tolerance), guidance_scale=1
        )
        generate(model, ["a ring"] * 2, [1, 2], settings, on_evaluated=counts.append)
    assert len(counts) == 4
    assert max(counts[:2]) < min(counts[2:])


def pictures_that_differ(
    patch_size: int, guidance_scale: float, *, counts: Sequence[int], **chosen: object
) -> list[tuple[int, int]]:
    """(size of the batch, place) of pictures that came out otherwise than among eighteen."""
    model = tiny_model(patch_size=patch_size, num_steps=2)
    settings = replace(model.settings, guidance_scale=guidance_scale, **chosen)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(18)]
    together = generate(model, prompts, range(18), settings)
    rng = np.random.default_rng(patch_size)
    differing: list[tuple[int, int]] = []
    for count in counts:
        rows = rng.permutation(18)[:count].tolist()
        again = generate(model, [prompts[i] for i in rows], rows, settings)
        differing += [
            (count, place)
            for place, i in enumerate(rows)
            if not np.array_equal(again[place], together[i])
        ]
    return differing


def test_negative_prompts_change_only_their_own_pictures(model: Model) -> None:
    plain = generate(model, PROMPTS[:3], [1, 2, 3])
    negative = ["", "three green crosses", "a ring"]
    guided = generate(model, PROMPTS[:3], [1, 2, 3], negative_prompts=negative)
    np.testing.assert_array_equal(guided[0], plain[0])
    for i in (1, 2):
        assert not np.array_equal(guided[i], plain[i])
        alone = generate(model, [PROMPTS[i]], [i + 1], negative_prompts=[negative[i]])
        np.testing.assert_array_equal(alone[0], guided[i])
    empty = generate(model, PROMPTS[:3], [1, 2, 3], negative_prompts=[""] * 3)
    np.testing.assert_array_equal(empty, plain)


def test_away_from_the_prompt_itself_is_no_guidance(model: Model) -> None:
    """v + scale·(v − v) is v at any scale."""
    unguided = generate(model, ["a ring"], [1], replace(model.settings, guidance_scale=1.0))
    for scale in (2.0, 5.0):
        settings = replace(model.settings, guidance_scale=scale)
        image = generate(model, ["a ring"], [1], settings, negative_prompts=["a ring"])
        assert np.abs(image.astype(int) - unguided.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("guidance", "scale"),
    [("none", 1.0), ("cfg", 1.0), ("auto:weaker=test", 4.0), ("skip-layers:layers=1", 1.0)],
)
def test_a_negative_prompt_is_never_ignored(model: Model, guidance: str, scale: float) -> None:
    chosen = parse_guidance(guidance)
    settings = replace(model.settings, guidance=chosen, guidance_scale=scale)
    model = replace(model, weaker=model)
    with pytest.raises(UserError, match=f"a negative prompt changes nothing with .* {scale:g}"):
        generate(model, ["a ring"], [1], settings, negative_prompts=["a circle"])
    generate(model, ["a ring"], [1], replace(settings, num_steps=2), negative_prompts=[""])


def test_each_picture_is_handed_over_as_soon_as_it_is_drawn(model: Model) -> None:
    given: list[tuple[int, np.ndarray]] = []
    seen: list[int] = []
    draw_pictures(
        model,
        ["a ring"] * 6,
        range(6),
        on_drawn=lambda i, image: given.append((i, image)),
        progress=lambda done, total: seen.append(len(given)),
    )
    assert [i for i, _ in given] == list(range(6))
    together = generate(model, ["a ring"] * 6, range(6))
    np.testing.assert_array_equal(np.stack([image for _, image in given]), together)
    assert seen[0] < 6


def test_a_picture_that_diverges_is_told_by_its_own_place_and_step(model: Model) -> None:
    broken = deepcopy(model.backbone)
    torch.nn.init.constant_(broken.x_embedder.proj.weight, torch.nan)
    told = "latents of sample 0 are not finite after step 1 of 3 .*: its weights hold"
    for count in (1, 3):
        with pytest.raises(DivergedError, match=told):
            generate(replace(model, backbone=broken), ["a ring"] * count, range(count))


def test_the_probe_of_batch_sizes_guides_between_two_prompts(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    contrasts: list[float] = []
    combine = AdaptiveProjectedGuidance.combine

    def noting(self: Guidance, velocities: Velocities, *rest: Any) -> torch.Tensor:
        contrasts.append((velocities["conditional"] - velocities["null"]).abs().max().item())
        return combine(self, velocities, *rest)

    monkeypatch.setattr(AdaptiveProjectedGuidance, "combine", noting)
    settings = replace(model.settings, guidance=AdaptiveProjectedGuidance())
    generate(model, ["a ring"], [0], settings)
    assert min(contrasts) > 0.0


def test_prompt_seed_and_settings_all_matter(model: Model) -> None:
    images = generate(model, ["a red circle"] * 2 + ["a ring"], [1, 2, 1])
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    stronger = replace(model.settings, guidance_scale=6.0)
    assert not np.array_equal(generate(model, ["a ring"], [1], stronger)[0], images[2])


def test_initial_noise_follows_the_seed_alone(model: Model) -> None:
    noise = initial_noise(model, [7, 8, 7], model.settings)
    assert noise.shape == (3, 16, 8, 8)
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert abs(float(noise.mean())) < 0.1


def test_other_sizes_than_the_trained_one(model: Model) -> None:
    settings = SamplingSettings(num_steps=1, height_px=32, width_px=96)
    assert generate(model, ["a ring"], [0], settings).shape == (1, 32, 96, 3)


def test_large_pictures_are_decoded_in_strips_to_the_same(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = initial_noise(model, [1], replace(model.settings, width_px=160))
    whole = decode_latents(model, latents)
    monkeypatch.setattr(tiling, "MAX_PIXELS_AT_ONCE", 64 * 160 - 1)
    in_strips = decode_latents(model, latents)
    assert torch.equal(in_strips, tiling.decode_in_strips(model.autoencoder, latents))
    torch.testing.assert_close(in_strips, whole, atol=1e-5, rtol=1e-5)


def test_pixels_round_and_clip() -> None:
    images = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_pixels(images)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_progress_counts_pictures(model: Model) -> None:
    seen: list[tuple[int, int]] = []
    generate(
        model, ["a ring"] * 6, range(6), progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (6, 6)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_refuses_what_cannot_be_drawn(model: Model) -> None:
    with pytest.raises(UserError, match="2 prompts came with 1 seeds"):
        generate(model, ["a", "b"], [1])
    with pytest.raises(UserError, match="0 prompts came with 0 seeds"):
        generate(model, [], [])
    with pytest.raises(UserError, match="1 negative prompts came with 2 prompts"):
        generate(model, ["a", "b"], [1, 2], negative_prompts=["c"])
    with pytest.raises(UserError, match="1 negative prompts came with 1 prompts; give a list"):
        generate(model, ["a"], [1], negative_prompts="c")
    with pytest.raises(UserError, match="seed -1 is out of range"):
        generate(model, ["a"], [-1])
    with pytest.raises(UserError, match=r"height 40 px does not fit.*multiple of 16 px up to 256"):
        generate(model, ["a"], [1], SamplingSettings(height_px=40))
    with pytest.raises(UserError, match="width 4096 px does not fit"):
        generate(model, ["a"], [1], SamplingSettings(width_px=4096))
    with pytest.raises(UserError, match="not valid Unicode"):
        generate(model, ["a \udcff"], [1])


@torch.inference_mode()
def test_modulation_is_tabulated_by_times_however_often_each_is_evaluated(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heun's method evaluates twice where one step ends and the next begins."""
    tables: list[int] = []
    tabulate = latents_module.tabulate

    def noting(backbone: Backbone, batches: list[EmbeddedConditioning], times: torch.Tensor):
        tables.append(len(times.unique()))
        return tabulate(backbone, batches, times)

    monkeypatch.setattr(latents_module, "tabulate", noting)
    conditioning, null = encode_prompts(model, ["a ring"])
    noise = initial_noise(model, [0], model.settings)
    offloaded = replace(model, backbone=offload_modulation(model.backbone))
    for num_steps in (40, 70):
        settings = replace(model.settings, num_steps=num_steps, solver=parse_solver("heun"))
        plain, other = (
            draw_latents(each, conditioning, null, noise, settings) for each in (model, offloaded)
        )
        # Wherever the weights lie.
        assert torch.equal(plain, other)
    assert tables == [41, 41, 71, 71]


def test_zeros_for_t5_cost_one_token() -> None:
    whole = tiny_model()
    model = replace(whole, conditioner=tiny_conditioner(("clip_l", "clip_g")))
    (prompts, null) = encode_prompts(model, ["a ring", ""])
    length = whole.conditioner.config.t5.length
    assert {prompts.last_count, null.last_count} == {length}
    assert prompts.context.shape[1] == null.context.shape[1] == LENGTH + 1
    assert not prompts.context[:, -1].any()
    noise = initial_noise(model, [1, 2], model.settings)
    found = draw_latents(model, prompts, null, noise, model.settings)
    full = [
        replace(each, context=repeat_last(each.context, length), last_count=1)
        for each in (prompts, null)
    ]
    expected = draw_latents(model, *full, noise, model.settings)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert encode_prompts(whole, [""])[0].last_count == 1
