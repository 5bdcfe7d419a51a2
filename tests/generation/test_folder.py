"""Pictures in a folder: named by what made them, with it in their metadata, whatever the prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import tiny_model

from rectiflow.base.errors import UserError
from rectiflow.generation import folder
from rectiflow.generation.folder import sample_to_folder
from rectiflow.generation.model import Model
from rectiflow.generation.parameters_text import parse_parameters
from rectiflow.generation.pictures import read_metadata, read_png, read_texts
from rectiflow.generation.text_to_image import generate
from rectiflow.generation.variations import Variation


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(num_steps=1)


def test_pictures_carry_how_they_were_made(model: Model, tmp_path: Path) -> None:
    paths = sample_to_folder(model, "A red circle!", count=2, seed=5, out=tmp_path / "new" / "out")
    assert [path.name.split("-")[-1] for path in paths] == ["seed5.png", "seed6.png"]
    assert paths[0].name.startswith("a-red-circle-")
    about = read_metadata(paths[1])
    assert about["prompt"] == "A red circle!"
    assert about["seed"] == 6
    assert about["settings"]["num_steps"] == 1
    assert about["model"] == {"name": "test", "sha256": "0" * 64}
    other_tools = parse_parameters(read_texts(paths[1])["parameters"])
    assert other_tools.prompt == "A red circle!"
    assert other_tools.values["Seed"] == "6"
    images = generate(model, [about["prompt"]], [about["seed"]])
    np.testing.assert_array_equal(read_png(paths[1]), images[0])


def test_drawing_again_writes_the_same_bytes(model: Model, tmp_path: Path) -> None:
    first = sample_to_folder(model, "a ring", count=1, seed=1, out=tmp_path / "a")[0]
    again = sample_to_folder(model, "a ring", count=3, seed=0, out=tmp_path / "b")[1]
    assert (first.name, first.read_bytes()) == (again.name, again.read_bytes())


def test_names_tell_models_settings_and_prompts_apart(model: Model, tmp_path: Path) -> None:
    stronger = replace(model.settings, guidance_scale=7.0)
    made = [
        sample_to_folder(model, "a ring", count=1, seed=1, out=tmp_path),
        sample_to_folder(model, "a ring!", count=1, seed=1, out=tmp_path),
        sample_to_folder(model, "a ring", count=1, seed=1, out=tmp_path, settings=stronger),
        sample_to_folder(replace(model, digest="1" * 64), "a ring", count=1, seed=1, out=tmp_path),
        sample_to_folder(model, "a ring", count=1, seed=1, out=tmp_path, negative_prompt="a"),
    ]
    assert len({paths[0] for paths in made}) == 5


def test_a_negative_prompt_is_drawn_and_told(model: Model, tmp_path: Path) -> None:
    path = sample_to_folder(
        model, "a ring", count=1, seed=1, out=tmp_path, negative_prompt="a circle"
    )[0]
    assert read_metadata(path)["negative_prompt"] == "a circle"
    images = generate(model, ["a ring"], [1], negative_prompts=["a circle"])
    np.testing.assert_array_equal(read_png(path), images[0])
    unguided = replace(model.settings, guidance_scale=1.0)
    with pytest.raises(UserError, match="a negative prompt changes nothing"):
        sample_to_folder(
            model, "a", count=1, seed=1, out=tmp_path, negative_prompt="b", settings=unguided
        )


@pytest.mark.parametrize("prompt", ["", "🦊🦊", "   ", "\x00\n", "日本語", 'the word "🦊"'])
def test_any_text_is_a_prompt(model: Model, tmp_path: Path, prompt: str) -> None:
    warnings: list[str] = []
    path = sample_to_folder(model, prompt, count=1, seed=0, out=tmp_path, warn=warnings.append)[0]
    assert read_metadata(path)["prompt"] == prompt


def test_a_long_prompt_is_cut_and_each_encoder_says_what_it_lost(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = ("a red circle and " * 1000)[:10_000]
    path = sample_to_folder(model, prompt, count=1, seed=0, out=tmp_path)[0]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"rectiflow: the prompt is too long for {name}" for name in ("clip_l", "clip_g", "t5")
    ]
    for line in lines:
        assert "circle and a red" in line
        assert "characters)" in line
        assert len(line) < 400
    assert read_metadata(path)["prompt"] == prompt
    assert len(path.name) < 100


def test_what_cannot_be_drawn_or_written(model: Model, tmp_path: Path) -> None:
    for count in (0, 1_000_001):
        with pytest.raises(UserError, match=f"{count} pictures were asked for; .* to 1,000,000"):
            sample_to_folder(model, "a", count=count, seed=0, out=tmp_path)
    with pytest.raises(UserError, match="seed 9223372036854775808 is out of range"):
        sample_to_folder(model, "a", count=100, seed=2**63 - 100 + 1, out=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        sample_to_folder(model, "a", count=1, seed=0, out=tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_is_told_before_drawing(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "draw_pictures", lambda *_, **__: pytest.fail("it was drawn"))
    (tmp_path / "file").write_text("")
    for out, told in (
        (tmp_path / "file" / "below", "a part of the path is a file"),
        (Path("/proc/nowhere"), "it does not exist|no permission"),
    ):
        with pytest.raises(UserError, match=f"cannot write .*: ({told})"):
            sample_to_folder(model, "a", count=1, seed=0, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("variation", [None, Variation(seed=3)])
def test_many_pictures_are_drawn_part_by_part_to_the_same_bytes(
    model: Model, variation: Variation | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(out: Path) -> list[tuple[str, bytes]]:
        paths = sample_to_folder(
            model, "a ring", count=5, seed=0, out=out, variation=variation,
            progress=lambda done, total: seen.append((done, total)),
        )  # fmt: skip
        return [(path.name, path.read_bytes()) for path in paths]

    seen: list[tuple[int, int]] = []
    expected = draw(tmp_path / "whole")
    monkeypatch.setattr(folder, "MAX_TOGETHER", 2)
    numbers: list[int] = []
    together = folder.draw_pictures

    def note(model: Model, prompts: list[str], *rest: Any, **others: Any) -> None:
        numbers.append(len(prompts))
        together(model, prompts, *rest, **others)

    monkeypatch.setattr(folder, "draw_pictures", note)
    seen.clear()
    assert draw(tmp_path / "parts") == expected
    assert numbers == [2, 2, 1]
    assert seen == sorted(seen)
    assert seen[-1] == (5, 5)
