"""A picture drawn again from its file is the same, or the replay says what differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import tiny_backbone, tiny_model

from rectiflow.base.config import to_json
from rectiflow.base.errors import UserError
from rectiflow.generation import replay as replaying
from rectiflow.generation.folder import sample_to_folder, save_picture
from rectiflow.generation.load_settings import LoadSettings
from rectiflow.generation.model import Model
from rectiflow.generation.pictures import encode_png, read_metadata, read_png, save_png
from rectiflow.generation.replay import replay
from rectiflow.sampling import parse_guidance, parse_solver


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(num_steps=1)


@pytest.fixture
def picture(model: Model, tmp_path: Path) -> Path:
    return sample_to_folder(
        model, "a ring", count=1, seed=4, out=tmp_path, negative_prompt="a circle"
    )[0]


def test_a_picture_drawn_again_is_identical(model: Model, picture: Path) -> None:
    result = replay(picture, model=model)
    assert result.is_identical
    assert str(result) == "identical"
    assert to_json(result.redrawn) == read_metadata(picture)
    np.testing.assert_array_equal(result.image, read_png(picture))


def test_so_is_any_other_way_of_drawing(model: Model, tmp_path: Path) -> None:
    settings = replace(
        model.settings,
        height_px=32,
        num_steps=2,
        solver=parse_solver("dormand-prince:tolerance=0.5"),
        guidance=parse_guidance("auto:weaker=test"),
    )
    model = replace(model, weaker=model)
    path = sample_to_folder(model, "a", count=2, seed=0, out=tmp_path, settings=settings)[1]
    result = replay(path, model=model)
    assert str(result) == "identical"
    # Nor does its file differ, which tells how often the solver stepped.
    save_picture(tmp_path / "again.png", result.image, result.redrawn)
    assert (tmp_path / "again.png").read_bytes() == path.read_bytes()


def test_other_weights_show(model: Model, picture: Path) -> None:
    other = replace(model, backbone=tiny_backbone(depth=1), digest="1" * 64)
    result = replay(picture, model=other)
    assert not result.is_identical
    outcome, pixels, cause = str(result).split("\n  ")
    assert outcome == "differs"
    assert pixels.startswith("pixels: ")
    assert "% differ, by at most" in pixels
    assert cause == ("model: test (SHA-256 000000000000…) then, test (SHA-256 111111111111…) now")


def test_a_changed_picture_shows(model: Model, picture: Path) -> None:
    image = read_png(picture).copy()
    image[0, 0, 1] ^= 8
    save_png(picture, image, read_metadata(picture))
    text = str(replay(picture, model=model))
    assert "pixels: 0.02% differ, by at most 8 of 255\n" in text
    assert "nothing that the file records differs: it was changed since" in text
    save_png(picture, image[:32], read_metadata(picture))
    told = "pixels: the file has 64×32 of them, its settings make 64×64"
    assert told in str(replay(picture, model=model))


def test_where_it_was_drawn_is_compared(model: Model, picture: Path) -> None:
    about = replaying._read(picture)
    assert about.environment is not None
    elsewhere = replace(
        about.environment, torch="1.0", device="cuda", processor="H100", threads=None
    )
    image = read_png(picture)
    save_picture(picture, image, replace(about, rectiflow="0.0.1", environment=elsewhere))
    first, *differences = str(replay(picture, model=model)).split("\n  ")
    assert first == "identical"
    assert [line.split(":")[0] for line in differences] == [
        "rectiflow",
        "torch",
        "device",
        "processor",
        "threads",
    ]
    assert differences[1] == f"torch: 1.0 then, {torch.__version__} now"
    save_picture(picture, image, replace(about, environment=None))
    told = "identical\n  environment: the file does not say where it was drawn"
    assert str(replay(picture, model=model)) == told


def test_as_many_threads_as_then_if_there_are(
    model: Model, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = replaying._read(picture)
    assert about.environment is not None
    monkeypatch.setattr(replaying.os, "cpu_count", lambda: 2)
    for recorded, used in ((2, 2), (10**6, 1)):
        before = replace(about, environment=replace(about.environment, threads=recorded))
        save_picture(picture, read_png(picture), before)
        redrawn = replay(picture, model=model).redrawn
        assert redrawn.environment is not None
        assert redrawn.environment.threads == used
        assert torch.get_num_threads() == 1


def test_the_model_is_found_by_its_name(
    model: Model, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="was drawn by the model 'test', which cannot .*--model"):
        replay(picture)
    names: list[str] = []

    def load(name: str, settings: LoadSettings) -> Model:
        names.append(name)
        return model

    monkeypatch.setattr(replaying, "load_model", load)
    assert replay(picture).is_identical
    assert replay(picture, model="elsewhere").is_identical
    assert names == ["test", "elsewhere"]


def test_what_cannot_be_repeated(model: Model, picture: Path) -> None:
    about, image = read_metadata(picture), read_png(picture)
    picture.write_bytes(encode_png(image))
    with pytest.raises(UserError, match="carries no rectiflow metadata"):
        replay(picture, model=model)
    save_png(picture, image, about | {"edited": {"strength": 0.5}})
    with pytest.raises(UserError, match='cannot be drawn again .*unknown key "edited"'):
        replay(picture, model=model)
    del about["seed"]
    save_png(picture, image, about)
    with pytest.raises(UserError, match='cannot be drawn again .*missing key "seed"'):
        replay(picture, model=model)
