"""The pipeline takes what users of diffusers give, and threads share one."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from generation.tiny_edits import lora_file, mask, source
from PIL import Image
from tiny_model import tiny_backbone, tiny_model

import rectiflow
from rectiflow.base.errors import ConfigError, UserError
from rectiflow.generation.editing import Edit
from rectiflow.generation.load_settings import LoraFile
from rectiflow.generation.loras import with_loras
from rectiflow.generation.pipeline import Pipeline
from rectiflow.generation.quantized import with_quantization
from rectiflow.generation.text_to_image import encode_prompts, generate
from rectiflow.sampling import Heun, parse_guidance

PROMPTS = ["a red circle", 'the word "CAT"']


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny_model())


def latents(pipeline: Pipeline, *arguments, **options) -> torch.Tensor:
    return pipeline(*arguments, output_type="latent", **options).images


def test_it_is_at_hand_in_the_package():
    assert rectiflow.Pipeline is Pipeline
    with pytest.raises(AttributeError, match="has no attribute 'Pipelines'"):
        rectiflow.Pipelines  # noqa: B018


def test_pictures_are_those_of_generate(pipeline):
    drawn = pipeline(PROMPTS, seed=3, num_images_per_prompt=2)
    prompts = [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    expected = generate(pipeline.model, prompts, [3, 4, 5, 6])
    assert drawn.seeds == (3, 4, 5, 6)
    assert drawn.prompts == tuple(prompts)
    for image, pixels in zip(drawn.images, expected, strict=True):
        assert np.array_equal(np.asarray(image), pixels)
    alone = pipeline(PROMPTS[1], seed=[6]).images[0]
    assert np.array_equal(np.asarray(alone), expected[3])


def test_output_types_are_the_same_pictures(pipeline):
    as_np, as_pt = (pipeline(PROMPTS, seed=0, output_type=kind).images for kind in ("np", "pt"))
    assert as_np.shape == (2, 64, 64, 3)
    assert as_pt.shape == (2, 3, 64, 64)
    assert np.array_equal(as_np, as_pt.permute(0, 2, 3, 1).numpy())
    pictures = pipeline(PROMPTS, seed=0).images
    assert np.abs(np.stack(pictures) / 255.0 - as_np).max() <= 0.5 / 255 + 1e-6
    assert latents(pipeline, PROMPTS, seed=0).shape == (2, 16, 8, 8)


@pytest.mark.parametrize("solver", ["euler", "ancestral"])
def test_noise_from_generators_is_that_of_diffusers(pipeline, solver):
    one = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    drawn = latents(pipeline, PROMPTS, generator=one, solver=solver)
    assert torch.equal(drawn, latents(pipeline, PROMPTS, latents=noise, solver=solver))
    each = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    pair = latents(pipeline, PROMPTS, generator=each, solver=solver)
    two = torch.Generator().manual_seed(2)
    alone = latents(pipeline, PROMPTS[1], generator=two, solver=solver)
    assert torch.equal(pair[1:], alone)


def test_a_seed_is_drawn_and_told(pipeline):
    first, second = pipeline(PROMPTS[0]), pipeline(PROMPTS[0])
    assert first.seeds != second.seeds
    assert np.array_equal(pipeline(PROMPTS[0], seed=first.seeds[0]).images[0], first.images[0])


def test_embeddings_stand_for_prompts(pipeline):
    conditioning, _ = encode_prompts(pipeline.model, PROMPTS)
    given = {
        "prompt_embeds": conditioning.context,
        "pooled_prompt_embeds": conditioning.pooled,
        "negative_prompt_embeds": conditioning.context.flip(0),
        "negative_pooled_prompt_embeds": conditioning.pooled.flip(0),
    }
    found = pipeline(**given, seed=0, output_type="latent")
    assert found.prompts == (None, None)
    expected = latents(pipeline, PROMPTS, PROMPTS[::-1], seed=0)
    assert torch.equal(found.images, expected)


def test_settings_follow_the_model_and_the_call(pipeline):
    assert pipeline(PROMPTS[0]).settings == pipeline.model.settings
    call = {"num_inference_steps": 2, "height": 48, "width": 80, "shift": 2.0}
    drawn = pipeline(PROMPTS[0], guidance_scale=1.0, solver="heun", **call)
    assert drawn.images[0].size == (80, 48)
    assert (drawn.settings.num_steps, drawn.settings.solver) == (2, Heun())
    assert (drawn.settings.guidance_scale, drawn.settings.shift) == (1.0, 2.0)
    same = pipeline(
        PROMPTS[0], guidance_scale=1.0, seed=drawn.seeds[0], **(call | {"solver": Heun()})
    )
    assert np.array_equal(same.images[0], drawn.images[0])


def test_a_guidance_scale_below_1_is_none_as_in_diffusers(pipeline):
    one, zero = (latents(pipeline, PROMPTS[0], seed=0, guidance_scale=x) for x in (1.0, 0.0))
    assert torch.equal(one, zero)
    assert not torch.equal(zero, latents(pipeline, PROMPTS[1], seed=0, guidance_scale=0.0))


def test_words_that_are_cut_are_warned_of_and_told(pipeline):
    long = " ".join(["a red circle"] * 8)
    with pytest.warns(UserWarning, match="the prompt is too long for clip_l, which does not see"):
        cut = pipeline([PROMPTS[0], long], seed=0, num_inference_steps=1).cut
    assert cut[0] == {}
    assert set(cut[1]["prompt"]) == {"clip_l", "clip_g", "t5"}


def test_seeds_of_any_kind_of_whole_number(pipeline):
    expected = latents(pipeline, PROMPTS, seed=[3, 4], num_inference_steps=1)
    for seed in (np.int64(3), np.array([3, 4]), torch.tensor([3, 4])):
        drawn = pipeline(PROMPTS, seed=seed, num_inference_steps=1, output_type="latent")
        assert torch.equal(drawn.images, expected)
        assert [type(one) for one in drawn.seeds] == [int, int]


def test_a_weaker_model_is_loaded_once(monkeypatch):
    loads = []
    weaker = replace(tiny_model(), name="other")

    def load(name, model):
        loads.append(name)
        return weaker

    monkeypatch.setattr("rectiflow.generation.model._load_weaker", load)
    pipeline = Pipeline(tiny_model())
    drawn = [latents(pipeline, "a", seed=0, guidance="auto:weaker=other") for _ in range(2)]
    assert torch.equal(*drawn)
    assert loads == ["other"]


def test_a_weaker_model_beside_the_given_one_is_taken_by_its_name():
    weaker = replace(tiny_model(), name="in-memory", backbone=tiny_backbone(depth=1))
    guided = {"seed": 0, "guidance": "auto:weaker=in-memory", "num_inference_steps": 2}
    pipeline = Pipeline(replace(tiny_model(), weaker=weaker))
    settings = replace(
        pipeline.model.settings, num_steps=2, guidance=parse_guidance("auto:weaker=in-memory")
    )
    for _ in range(2):
        (picture,) = pipeline("a", **guided).images
        assert np.array_equal(picture, generate(pipeline.model, ["a"], [0], settings)[0])
    with pytest.raises(UserError, match="no model 'in-memory'"):
        Pipeline(tiny_model())("a", **guided)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", torch.device("cuda:99")])
def test_a_device_that_is_not_here_is_told(pipeline, device):
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used here: .*give cpu"):
        pipeline.to(device)
    assert pipeline.to(torch.device("cpu")) is pipeline


def test_the_name_of_one_encoder_is_no_list():
    with pytest.raises(ConfigError, match=r"encoders='clip_l' is one text; .* \['clip_l'\]"):
        Pipeline.from_pretrained("tiny", encoders="clip_l")


#: What the checks of annotations, which users do not have, would tell first.
WRONG_TYPES = """
import numpy as np
from rectiflow import Pipeline
from rectiflow.base.errors import UserError

pipeline = Pipeline.from_pretrained("tiny")
for given in (
    {"height": 64.0}, {"num_inference_steps": 2.0}, {"latents": np.zeros((1, 16, 8, 8))},
    {"prompt": None, "prompt_embeds": np.zeros((1, 2, 3)), "pooled_prompt_embeds": [0.0]},
):
    try:
        pipeline(**{"prompt": "a"} | given)
    except UserError as error:
        print(error)
assert pipeline("a", num_inference_steps=np.int64(1)).settings.num_steps == 1
"""


def test_arguments_of_a_wrong_type_are_told_in_one_line(run_python):
    done = run_python(WRONG_TYPES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "height_px=64.0 must be a whole number",
        "num_steps=2.0 must be a whole number",
        "latents is a ndarray [1, 16, 8, 8]; give a torch.Tensor",
        "prompt_embeds is a ndarray [1, 2, 3]; give a torch.Tensor",
    ]


def test_embeddings_of_another_length_than_the_empty_prompts(pipeline):
    embeds = {"prompt_embeds": torch.zeros(1, 20, 48), "pooled_prompt_embeds": torch.zeros(1, 48)}
    with pytest.raises(UserError, match="embeddings have 20 tokens, those of the negative .* 24"):
        pipeline(**embeds)
    assert latents(pipeline, **embeds, guidance_scale=1.0).shape == (1, 16, 8, 8)
    negative = {f"negative_{name}": value for name, value in embeds.items()}
    assert latents(pipeline, **embeds, **negative).shape == (1, 16, 8, 8)


def test_the_callback_sees_and_changes_latents(pipeline):
    seen = []

    def look(pipe, step, time, values):
        seen.append((pipe, step, time))
        return {"latents": torch.zeros_like(values["latents"])} if step == 2 else {}

    assert latents(pipeline, PROMPTS[0], callback_on_step_end=look).abs().max() == 0
    assert [step for _, step, _ in seen] == [0, 1, 2]
    assert [time for _, _, time in seen] == pytest.approx([1000, 2000 / 3, 1000 / 3], rel=1e-5)
    with pytest.raises(UserError, match=r"the callback gave \['prompt_embeds'\]; it may give"):
        pipeline(PROMPTS[0], callback_on_step_end=lambda *_: {"prompt_embeds": torch.zeros(1)})


def test_the_callback_sees_each_picture_once_whatever_fills_a_batch(pipeline):
    shapes = []

    def look(pipe, step, time, values):
        shapes.append(tuple(values["latents"].shape))
        return {"latents": values["latents"].double()}

    drawn = latents(pipeline, PROMPTS, seed=0, callback_on_step_end=look)
    assert len(shapes) % 3 == 0
    assert sum(shape[0] for shape in shapes) == 3 * 2
    assert torch.equal(drawn, latents(pipeline, PROMPTS, seed=0))


@pytest.mark.parametrize(
    ("give", "told"),
    [
        (lambda z: z, r"the callback gave a Tensor \[1, 16, 8, 8\]; it may give back {\"latents"),
        (
            lambda z: {"latents": z[:, :4]},
            r"a Tensor \[1, 4, 8, 8\]; give back a tensor \[1, 16, 8",
        ),
        (lambda z: {"latents": z.numpy()}, r"latents that are a ndarray \[1, 16, 8, 8\]; give"),
        (lambda z: {"latents": 0.0}, "latents that are a float; give back a tensor"),
    ],
)
def test_what_a_callback_may_not_give(pipeline, give, told):
    with pytest.raises(UserError, match=told):
        pipeline(PROMPTS[0], callback_on_step_end=lambda *call: give(call[-1]["latents"]))


def test_pictures_from_pictures_are_those_of_generate(pipeline):
    image, painted = Image.fromarray(source(64, 48)), Image.fromarray(mask()[:, :48])
    settings = replace(pipeline.model.settings, width_px=48)
    for given, edit in (
        ({}, Edit(source=source(64, 48))),
        (
            {"mask_image": painted, "strength": 0.9},
            Edit(source=source(64, 48), mask=mask()[:, :48], strength=0.9),
        ),
    ):
        drawn = pipeline(PROMPTS, seed=3, image=image, **given)
        expected = generate(pipeline.model, PROMPTS, [3, 4], settings, edit=edit)
        assert all(np.array_equal(a, b) for a, b in zip(drawn.images, expected, strict=True))
        assert (drawn.edit, drawn.settings) == (edit.reference, settings)
    as_np, as_pt = (
        pipeline(PROMPTS, seed=3, image=image, **given, output_type=kind).images
        for kind in ("np", "pt")
    )
    assert np.array_equal(as_np, as_pt.permute(0, 2, 3, 1).numpy())
    assert np.abs(expected / 255.0 - as_np).max() <= 0.5 / 255 + 1e-6
    kept = mask()[:, :48] == 0
    assert np.abs(as_np[0][kept] - source(64, 48)[kept] / 255.0).max() < 1e-6


def test_the_callback_is_told_when_the_first_step_that_is_taken_begins(pipeline):
    for given, expected in (
        ({"image": source(), "strength": 0.7}, [1000, 2000 / 3, 1000 / 3]),
        ({"image": source(), "strength": 0.3}, [1000 / 3]),
        ({"guidance": "zero-star"}, [2000 / 3, 1000 / 3]),
    ):
        times: list[float] = []
        look = lambda pipe, step, time, values: times.append(time)  # noqa: B023, E731
        latents(pipeline, PROMPTS[0], callback_on_step_end=look, **given)
        assert times == pytest.approx(expected, rel=1e-5)


def test_loras_come_and_go_between_calls(tmp_path):
    pipeline = Pipeline(tiny_model(num_steps=2))
    plain = latents(pipeline, PROMPTS[0], seed=0)
    first = lora_file(tmp_path / "first.safetensors", text="t5")
    second = lora_file(tmp_path / "second.safetensors", rank=1)

    def load(*_):
        if not pipeline.model.loras:
            pipeline.load_lora_weights(first, weight=-0.5)

    # Loaded in the middle of a call, which goes on as it began.
    assert torch.equal(latents(pipeline, PROMPTS[0], seed=0, callback_on_step_end=load), plain)
    pipeline.load_lora_weights(second)
    with pytest.raises(UserError, match="nowhere"):
        pipeline.load_lora_weights(tmp_path / "nowhere")
    drawn = pipeline(PROMPTS[0], seed=0, output_type="latent")
    assert [(lora.name, lora.weight) for lora in drawn.loras] == [
        ("first.safetensors", -0.5),
        ("second.safetensors", 1.0),
    ]
    stack = [LoraFile(path=first, weight=-0.5), LoraFile(path=second)]
    expected = Pipeline(with_loras(tiny_model(num_steps=2), stack))
    assert torch.equal(drawn.images, latents(expected, PROMPTS[0], seed=0))
    assert torch.equal(latents(pipeline.to("cpu"), PROMPTS[0], seed=0), drawn.images)
    pipeline.unload_lora_weights()
    assert torch.equal(latents(pipeline, PROMPTS[0], seed=0), plain)


def test_eight_bits_come_and_go_between_calls(tmp_path):
    pipeline = Pipeline(tiny_model(num_steps=2))
    plain = latents(pipeline, PROMPTS[0], seed=0)
    pipeline.quantize("int8")
    assert pipeline.model.quantization is not None
    change = pipeline.model.quantization.change
    rounded = pipeline(PROMPTS[0], seed=0, output_type="latent")
    assert rounded.quantization == pipeline.model.quantization
    moved = (rounded.images - plain).norm() / plain.norm()
    assert 0.0 < moved < 10 * change < 1.0
    # A LoRA goes into the weights before they are rounded.
    file = lora_file(tmp_path / "first.safetensors")
    pipeline.load_lora_weights(file)
    both = with_quantization(with_loras(tiny_model(num_steps=2), [LoraFile(path=file)]), "int8")
    expected = latents(Pipeline(both), PROMPTS[0], seed=0)
    assert torch.equal(latents(pipeline, PROMPTS[0], seed=0), expected)
    with pytest.raises(UserError, match="is held in int8, which LoRAs cannot be merged into; merg"):
        Pipeline(both).load_lora_weights(file)
    for kind, text in (("fp8", "fp8 is for device cuda, not cpu"), ("int4", "one of int8, fp8")):
        with pytest.raises(ConfigError, match=text):
            pipeline.quantize(kind)
    assert torch.equal(latents(pipeline, PROMPTS[0], seed=0), expected)
    pipeline.unload_lora_weights()
    assert torch.equal(latents(pipeline, PROMPTS[0], seed=0), rounded.images)
    pipeline.quantize(None)
    assert torch.equal(latents(pipeline, PROMPTS[0], seed=0), plain)


def test_threads_share_a_pipeline(pipeline):
    guidances = ("cfg", "skip-layers:layers=1", "perturb-attention:layers=0")
    calls = [(guidance, seed) for guidance in guidances for seed in range(2)]

    def draw(call):
        return latents(pipeline, f"a red circle {call[1]}", guidance=call[0], seed=call[1])

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(draw, calls))
    for call, found in zip(calls, together, strict=True):
        assert torch.equal(found, draw(call))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "give a prompt, or prompt_embeds and pooled_prompt_embeds"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": "a", "prompt_embeds": torch.zeros(1, 24, 48)}, "belong together; give both"),
        (
            {
                "prompt": "a",
                "prompt_embeds": torch.zeros(1, 24, 48),
                "pooled_prompt_embeds": torch.zeros(1, 48),
            },
            "prompt came with prompt_embeds; give one of them",
        ),
        (
            {
                "prompt_embeds": torch.zeros(1, 24, 47),
                "pooled_prompt_embeds": torch.zeros(1, 48),
            },
            r"do not fit this model, whose are \[n l 48\] and \[n 48\]",
        ),
        (
            {"prompt_embeds": torch.zeros(24, 48), "pooled_prompt_embeds": torch.zeros(1, 48)},
            r"prompt_embeds \[24, 48\] and .* do not fit this model",
        ),
        (
            {"prompt_embeds": torch.zeros(1, 24, 48), "pooled_prompt_embeds": torch.zeros(48)},
            r"pooled_prompt_embeds \[48\] do not fit this model",
        ),
        (
            {"prompt_embeds": torch.zeros(1, 0, 48), "pooled_prompt_embeds": torch.zeros(1, 48)},
            r"prompt_embeds \[1, 0, 48\] .* do not fit this model, whose .* n and l at least 1",
        ),
        (
            {
                "prompt_embeds": torch.full((1, 24, 48), torch.nan),
                "pooled_prompt_embeds": torch.zeros(1, 48),
            },
            "^prompt_embeds hold values that are not finite; look at what made them",
        ),
        (
            {
                "prompt": "a",
                "negative_prompt_embeds": torch.zeros(1, 24, 48),
                "negative_pooled_prompt_embeds": torch.full((1, 48), torch.inf),
            },
            "^negative_pooled_prompt_embeds hold values that are not finite",
        ),
        (
            {"prompt": "a", "guidance": "skip-layers:layers=99,low=0.5,high=0.6"},
            "this model has no block 99",
        ),
        (
            {"prompt": "a", "negative_prompt_embeds": torch.zeros(1, 24, 48)},
            "negative_prompt_embeds and negative_pooled_prompt_embeds belong together",
        ),
        ({"prompt": ["a", "b", "c"], "negative_prompt": ["d", "e"]}, "2 negative prompts came"),
        ({"prompt": "a", "negative_prompt": "b", "guidance_scale": 1.0}, "changes nothing with"),
        ({"prompt": "a", "seed": 1, "latents": torch.zeros(1, 16, 8, 8)}, "give one of them"),
        ({"prompt": "a", "latents": torch.zeros(1, 16, 8, 9)}, r"need \[1, 16, 8, 8\]"),
        ({"prompt": "a", "seed": [1, 2]}, r"seed=\[1, 2\] does not suit 1 pictures"),
        ({"prompt": "a", "seed": -1}, "seed=-1 does not suit"),
        ({"prompt": "a", "guidance_scale": -1.0}, "guidance_scale=-1.0 must be a finite number"),
        ({"prompt": ["a"] * 3, "generator": [torch.Generator()] * 2}, "2 generators came for 3"),
        ({"prompt": "a", "height": 1000}, "height 1000 px does not fit this model"),
        ({"prompt": "a", "num_images_per_prompt": 0}, "must be at least 1"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_steps=0 must be from 1 to 1000"),
        ({"prompt": "a", "guidance_scale": float("nan")}, "guidance_scale=nan must be a finite"),
        ({"prompt": "a", "mask_image": mask()}, "mask_image came without an image; give the image"),
        ({"prompt": "a", "strength": 0.5}, "strength came without an image"),
        ({"prompt": "a", "image": source(), "strength": 0.0}, r"strength=0.0 must be above 0"),
        ({"prompt": "a", "image": source(), "height": 32}, "the source is 64×64 px, the settings"),
        ({"prompt": "a", "image": source(40, 40)}, "height 40 px does not fit this model"),
        ({"prompt": "a", "image": source(), "mask_image": mask()[:32]}, r"mask is \[32, 64\]"),
        ({"prompt": "a", "output_type": "jpeg"}, "output_type='jpeg' must be one of pil, np"),
    ],
)
def test_what_does_not_go_together(pipeline, given, told):
    with pytest.raises((UserError, ConfigError), match=told):
        pipeline(**given)


def test_noise_from_a_generator_is_float32_whatever_another_thread_loads(pipeline):
    """Who loads encoders has the default type of the whole process replaced meanwhile."""
    expected = latents(pipeline, PROMPTS[0], generator=torch.Generator().manual_seed(1))
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = latents(pipeline, PROMPTS[0], generator=torch.Generator().manual_seed(1))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
