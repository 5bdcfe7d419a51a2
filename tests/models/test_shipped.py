import shutil

import pytest
import torch

import rectiflow.models.shipped as shipped
from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.generation.model import load_model
from rectiflow.generation.text_to_image import generate
from rectiflow.models.model_folder import SHIPPED_MODELS
from rectiflow.models.shipped import (
    load_conditioner,
    load_image_tower,
    load_prompt_encoder,
    read_card,
    shipped_path,
    verify,
    write_card,
)
from rectiflow.models.text import assemble
from rectiflow.shapeworld.captions import captions, parse_caption
from rectiflow.shapeworld.oracle import Oracle
from rectiflow.shapeworld.scene import TASKS, sample_scene
from rectiflow.shapeworld.scoring import score
from rectiflow.shapeworld.world import FULL, SMALL, is_held_out_pair

MAX_TEXT_PARAMETERS = 2_400_000
MAX_BYTES = 30 * 10**6


@pytest.fixture
def part(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    (tmp_path / "inner/config.json").write_text("{}")
    write_card(tmp_path, recipe={"seed": 0}, commit="abc", data={}, scores={"psnr": 30.5})
    return tmp_path


def test_a_card_lists_every_file(part):
    card = verify(part)
    assert set(card.hashes) == {"weights.safetensors", "inner/config.json"}
    assert card == read_card(part)
    assert card.scores == {"psnr": 30.5}


def test_a_flipped_bit_is_found(part):
    path = part / "inner/config.json"
    damaged = bytearray(path.read_bytes())
    damaged[0] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"inner/config.json is damaged: its SHA-256 is"):
        verify(part)


def test_a_missing_file_is_found(part):
    (part / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights.safetensors is missing, though its card"):
        verify(part)


def test_an_unknown_part_is_refused():
    with pytest.raises(UserError, match=r"no part named 'texts' ships .* there are: .*text"):
        shipped_path("texts")


def test_loading_a_damaged_part_is_refused(tmp_path, monkeypatch):
    shutil.copytree(shipped_path("text"), tmp_path / "text")
    path = tmp_path / "text/text_encoder/model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    monkeypatch.setattr(shipped, "_ROOT", tmp_path)
    with pytest.raises(CheckpointError, match=r"text_encoder/model.safetensors is damaged"):
        load_conditioner()


def test_the_embedded_encoders_are_small_and_float32():
    conditioner, tower = load_conditioner(), load_image_tower()
    parameters = [*conditioner.parameters(), *tower.parameters()]
    assert sum(p.numel() for p in parameters) <= MAX_TEXT_PARAMETERS
    assert {p.dtype for p in parameters} == {torch.float32}
    conditioning = assemble(conditioner.encode(["a red circle"]))
    assert conditioning.context.shape == (1, 32, 192)
    assert conditioning.pooled.shape == (1, 160)
    assert tower.embed(torch.zeros(1, 3, 64, 64)).shape == (1, 96)


def test_prompts_met_before_need_neither_encoders_nor_transformers(tmp_path, monkeypatch):
    monkeypatch.setenv("RECTIFLOW_CACHE", str(tmp_path))
    plain, prompts = load_conditioner(), ["a red circle", ""]
    first = load_prompt_encoder()
    assert first.fingerprints() == plain.fingerprints()
    long = "a red circle above " * 20
    assert first.truncations(long) == plain.truncations(long)
    assert not first.is_loaded
    expected = plain.encode(prompts).columns()
    again = load_prompt_encoder()
    for encoder in (first, again):
        found = encoder.encode(prompts).columns()
        assert all(torch.equal(found[name], column) for name, column in expected.items())
    assert first.is_loaded
    assert not again.is_loaded
    # A list of prompts is encoded faster than it is kept.
    again.encode(["one", "two", "three", "four"])
    assert len(list((tmp_path / "prompts").iterdir())) == len(prompts)


def test_a_shipped_model_loads_without_transformers(run_python):
    result = run_python(
        "import sys; from rectiflow.generation.draw_list import load_model; load_model('tiny'); "
        "print([name for name in ('transformers', 'torch._dynamo', 'scipy', 'pyarrow', "
        "'matplotlib') if name in sys.modules])"
    )
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_some_of_the_embedded_encoders():
    encoded = load_conditioner(["clip_g"]).encode(["a red circle"])
    assert encoded.clip_g.context.any()
    assert not encoded.clip_l.context.any()
    assert not encoded.t5.any()


@pytest.mark.parametrize("world", [FULL, SMALL], ids=lambda world: world.name)
def test_no_caption_of_a_world_is_cut_and_every_word_is_one_token(world):
    conditioner = load_conditioner()
    for task in TASKS:
        for held_out in (False, True):
            for index in range(40):
                scene = sample_scene(
                    world, split="val", seed=3, index=index, task=task, held_out=held_out
                )
                for caption in captions(world, scene, seed=3, index=index).values():
                    assert conditioner.truncations(caption) == [], caption
                    if task != "typography":
                        ids = conditioner.tokenizers["t5"](caption)["input_ids"]
                        assert len(ids) == len(caption.replace(",", " ,").split()) + 1


def test_the_card_of_the_text_part_shows_what_it_must_reach():
    scores = read_card(shipped_path("text")).scores
    assert all(value >= 0.99 for value in scores["probe_clip"]["seen"].values())
    assert all(value >= 0.99 for value in scores["probe_t5"]["seen"].values())
    assert scores["retrieval_at_256"]["full"] >= 0.5


def test_all_that_ships_is_small():
    folder = shipped_path("text").parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MAX_BYTES


@pytest.mark.system
@pytest.mark.parametrize("name", SHIPPED_MODELS)
def test_a_shipped_model_draws_what_it_is_asked_for(name):
    model, world = load_model(name), SMALL
    assert read_card(shipped_path(name)).scores["model"] == name
    shown = [color for color in world.colors if not is_held_out_pair("circle", color)]
    prompts = [f"a photo of a {color} circle" for color in shown]
    wanted = [parse_caption(world, prompt) for prompt in prompts]
    oracle = Oracle(world)
    pictures = generate(model, prompts, range(len(prompts)))
    verdicts = [
        score(world, oracle.read(picture), record).correct
        for picture, record in zip(pictures, wanted, strict=True)
    ]
    assert sum(verdicts) > len(verdicts) / 2
