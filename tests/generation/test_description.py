"""What a picture tells of itself in words, whoever made it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from generation.tiny_edits import mask, source
from PIL import Image, PngImagePlugin
from tiny_model import tiny_model

from rectiflow.base.errors import UserError
from rectiflow.generation.description import describe_picture
from rectiflow.generation.editing import Edit
from rectiflow.generation.folder import save_picture
from rectiflow.generation.load_settings import LoadedLora
from rectiflow.generation.metadata import picture_metadata
from rectiflow.generation.pictures import save_png
from rectiflow.generation.variations import Variation
from rectiflow.sampling import AutoGuidance

IMAGE = np.zeros((8, 8, 3), np.uint8)


def told(path: Path) -> list[str]:
    return describe_picture(path).split("\n")


def with_text(path: Path, text: str) -> Path:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", text)
    Image.fromarray(IMAGE).save(path, pnginfo=chunks)
    return path


def test_what_a_picture_was_drawn_from(tmp_path: Path) -> None:
    edit = Edit(source=source(), mask=mask(), source_name="a.png", keep_source=False, strength=0.5)
    style = LoadedLora(name="style.safetensors", sha256="ab" * 32, weight=-0.5)
    model = replace(tiny_model(), loras=(style,))
    about = picture_metadata(
        model, "a", 7, model.settings, edit=edit, variation=Variation(seed=5, amount=0.25)
    )
    save_picture(tmp_path / "a.png", IMAGE, about)
    (lora, drawn, under, variation) = told(tmp_path / "a.png")[-5:-1]
    assert lora == f"LoRA              style.safetensors, weight -0.5 (SHA-256 {'ab' * 32})"
    assert drawn.startswith("drawn from        a.png (SHA-256 of its pixels ")
    assert drawn.endswith("), strength 0.5")
    assert under.startswith("under the mask    a picture in memory (SHA-256 of its pixels ")
    assert under.endswith("), all pixels from the decoder")
    assert variation == "variation         towards seed 5 by 0.25"


def test_all_that_our_own_pictures_know(tmp_path: Path) -> None:
    model = tiny_model()
    about = picture_metadata(
        replace(model, weaker=replace(model, name="other")),
        "a red circle and " * 40 + "\nthe end",
        7,
        replace(model.settings, guidance=AutoGuidance(weaker="other")),
        negative_prompt="a ring and " * 40,
    )
    save_picture(tmp_path / "a.png", IMAGE, replace(about, num_evaluations=12))
    lines = told(tmp_path / "a.png")
    names = [line[:17].strip() for line in lines]
    assert [name for name in names if name and "not seeing" not in name] == [
        "prompt",
        "negative prompt",
        "seed",
        "settings",
        "model",
        "weaker model",
        "evaluations",
        "drawn by",
    ]
    assert lines[1] == " " * 18 + "the end"
    assert sum("t5 not seeing" in line for line in lines) == 2
    assert "64×64 px, 3 steps, guidance 3, shift 1" in "\n".join(lines)
    assert lines[-1].startswith("drawn by          rectiflow ")
    assert lines[-1].endswith(", threads: 1")


def test_early_pictures_do_not_say_where_they_were_drawn(tmp_path: Path) -> None:
    about = replace(picture_metadata(tiny_model(), "a", 7, tiny_model().settings), environment=None)
    save_picture(tmp_path / "a.png", IMAGE, about)
    assert told(tmp_path / "a.png")[-1] == f"drawn by          rectiflow {about.rectiflow}"


def test_pictures_of_other_tools(tmp_path: Path) -> None:
    text = "a cat\x1b[2J\nNegative prompt: a dog\nSteps: 20, Sampler: Euler a, Seed: 3"
    lines = told(with_text(tmp_path / "a.png", text))
    assert lines[1] == "prompt            a cat\\x1b[2J"
    assert lines[2:] == [
        "negative prompt   a dog",
        "Steps             20",
        "Sampler           Euler a",
        "Seed              3",
    ]


def test_pictures_that_say_nothing(tmp_path: Path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="a.png does not say how it was made"):
        describe_picture(tmp_path / "a.png")
    save_png(tmp_path / "b.png", IMAGE, {"prompt": "a"})
    with pytest.raises(UserError, match='this version cannot read .missing key "seed"'):
        describe_picture(tmp_path / "b.png")
    with pytest.raises(UserError, match="cannot read .*none.png: it does not exist"):
        describe_picture(tmp_path / "none.png")
