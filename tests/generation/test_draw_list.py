"""A list drawn at once, in parts or twice gives the same folder, and nothing is drawn twice."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generation.tiny_edits import lora_file, mask, save, source
from tiny_model import tiny_model

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.generation import draw_list as drawing
from rectiflow.generation import folder, line_sources
from rectiflow.generation.changes import ModelChanges
from rectiflow.generation.draw_list import INDEX_FILE, draw_list
from rectiflow.generation.edit_files import read_edit
from rectiflow.generation.editing import Edit
from rectiflow.generation.folder import sample_to_folder
from rectiflow.generation.load_settings import LoraFile
from rectiflow.generation.metadata import PictureMetadata
from rectiflow.generation.model import Model
from rectiflow.generation.pictures import encode_png, read_metadata, read_png
from rectiflow.generation.prompt_list import PromptEntry
from rectiflow.generation.text_to_image import generate
from rectiflow.generation.variations import Variation
from rectiflow.sampling import parse_guidance, parse_solver

ENTRIES = (
    PromptEntry(prompt="a ring", line=1, count=2),
    PromptEntry(prompt="a circle", line=2, changes={"height_px": 32}, negative_prompt="a ring"),
    PromptEntry(prompt="three green crosses", line=4, seed=5),
    # The second picture of line 1 once more.
    PromptEntry(prompt="a ring", line=5, seed=1),
)
NUM_PICTURES = 4


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(num_steps=1)


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are drawn from here on."""
    names: list[str] = []
    save = folder.save_picture

    def note(path: Path, image: np.ndarray, about: PictureMetadata) -> None:
        names.append(path.name)
        save(path, image, about)

    monkeypatch.setattr(folder, "save_picture", note)
    return names


def test_each_line_has_the_pictures_that_it_would_have_alone(model: Model, tmp_path: Path) -> None:
    together = draw_list(model, ENTRIES, tmp_path / "list", count=1, seed=0)
    assert [len(paths) for paths in together] == [2, 1, 1, 1]
    assert together[3] == together[0][1:]
    alone = [
        sample_to_folder(
            model,
            entry.prompt,
            count=entry.count or 1,
            seed=entry.seed or 0,
            out=tmp_path / "alone",
            negative_prompt=entry.negative_prompt or "",
            settings=entry.settings(model.settings),
        )
        for entry in ENTRIES
    ]
    files = content(tmp_path / "list")
    index = [json.loads(line) for line in files.pop(INDEX_FILE).decode().splitlines()]
    assert files == content(tmp_path / "alone")
    assert [line["line"] for line in index] == [1, 2, 4, 5]
    assert [line["files"] for line in index] == [[p.name for p in paths] for paths in alone]


def test_a_list_goes_on_where_it_was_stopped(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_list(model, ENTRIES, tmp_path / "whole")
    expected = content(tmp_path / "whole")
    out = tmp_path / "stopped"
    # Killed after one picture, again and again.
    for num_drawn in range(1, NUM_PICTURES + 1):
        with monkeypatch.context() as patch:
            save, saved = folder.save_picture, list[str]()

            def save_once(path: Path, image: np.ndarray, about: PictureMetadata) -> None:
                if saved:  # noqa: B023
                    raise KeyboardInterrupt
                saved.append(path.name)  # noqa: B023
                save(path, image, about)  # noqa: B023

            patch.setattr(folder, "save_picture", save_once)
            with contextlib.suppress(KeyboardInterrupt):
                draw_list(model, ENTRIES, out)
        assert len(list(out.glob("*.png"))) == num_drawn
        assert (out / INDEX_FILE).exists() == (num_drawn == NUM_PICTURES)
    names = drawn(monkeypatch)
    draw_list(model, ENTRIES, out)
    assert names == []
    assert content(out) == expected


def test_what_is_damaged_or_of_another_is_drawn_anew(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, *_), *_ = draw_list(model, ENTRIES, tmp_path)
    expected = content(tmp_path)
    about = read_metadata(first)
    image = np.zeros((64, 64, 3), np.uint8)
    for spoiled in (
        expected[first.name][:200],
        encode_png(image, about | {"seed": 9}),
        encode_png(image),
        b"",
    ):
        first.write_bytes(spoiled)
        names = drawn(monkeypatch)
        draw_list(model, ENTRIES, tmp_path)
        monkeypatch.undo()
        assert names == [first.name]
        assert content(tmp_path) == expected
    # Where a picture was drawn is no reason to draw it again.
    first.write_bytes(encode_png(image, about | {"environment": None}))
    kept = content(tmp_path)
    draw_list(model, ENTRIES, tmp_path)
    assert content(tmp_path) == kept


def test_pictures_whose_solver_chose_its_steps_are_found_again(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = PromptEntry(
        prompt="a ring", line=1, changes={"solver": parse_solver("dormand-prince:tolerance=1")}
    )
    ((path,),) = draw_list(model, [entry], tmp_path)
    assert read_metadata(path)["num_evaluations"] > 0
    names = drawn(monkeypatch)
    draw_list(model, [entry], tmp_path)
    assert names == []


def test_progress_counts_over_all_settings(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "MAX_TOGETHER", 2)
    seen: list[tuple[int, int]] = []
    draw_list(model, ENTRIES, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (NUM_PICTURES, NUM_PICTURES)
    assert seen == sorted(seen)


def test_a_weaker_model_is_loaded_once(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(model: Model, settings: object) -> Model:
        loaded.append("weaker")
        return replace(model, weaker=replace(model, name="other"))

    monkeypatch.setattr(line_sources, "with_weaker", load)
    auto = parse_guidance("auto:weaker=other")
    entries = [
        PromptEntry(prompt="a ring", line=n, changes={"guidance": auto, "guidance_scale": float(n)})
        for n in (2, 3)
    ]
    draw_list(model, entries, tmp_path)
    assert loaded == ["weaker"]


def test_cut_prompts_are_told_with_their_line(model: Model, tmp_path: Path) -> None:
    long = "a red circle and " * 40
    warnings: list[str] = []
    entries = [
        PromptEntry(prompt="a ring", line=3, source="list.txt"),
        PromptEntry(prompt="a ring", line=7, source="list.txt", negative_prompt=long),
    ]
    draw_list(model, entries, tmp_path, warn=warnings.append)
    assert [text.split(",")[0] for text in warnings] == [
        f"list.txt:7: the negative prompt is too long for {name}"
        for name in ("clip_l", "clip_g", "t5")
    ]
    lines = [json.loads(text) for text in (tmp_path / INDEX_FILE).read_text().splitlines()]
    assert "cut" not in lines[0]
    assert set(lines[1]["cut"]["negative_prompt"]) == {"clip_l", "clip_g", "t5"}


@pytest.mark.parametrize(
    ("bad", "kind", "told"),
    [
        ({"changes": {"height_px": 40}}, UserError, "height 40 px does not fit this model"),
        ({"changes": {"num_steps": 0}}, ConfigError, "num_steps=0 must be from 1"),
        ({"changes": {"guidance_scale": 1.0}, "negative_prompt": "a"}, UserError, "a negative"),
        ({"seed": 2**63 - 1, "count": 2}, UserError, "seed 9223372036854775808 is out of range"),
        ({"prompt": "a \udcff"}, UserError, "not valid Unicode"),
        (
            {"changes": {"guidance": parse_guidance("perturb-attention:layers=2")}},
            UserError,
            "this model has no block 2",
        ),
        (
            {"changes": {"guidance": parse_guidance("skip-layers:layers=99+rescale+interval")}},
            UserError,
            "this model has no block 99",
        ),
        (
            {"changes": {"guidance": parse_guidance("none+rescale+interval")}},
            ConfigError,
            "guidance_scale=3 does not go with guidance none\\+rescale\\+interval; give 1",
        ),
    ],
)
def test_what_cannot_be_drawn_is_told_with_its_line(
    model: Model, tmp_path: Path, bad: dict[str, object], kind: type[UserError], told: str
) -> None:
    entry = PromptEntry(**{"prompt": "a", "line": 7, "source": "list.csv"} | bad)
    with pytest.raises(kind, match=f"list.csv:7: .*{told}"):
        draw_list(model, [ENTRIES[0], entry], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_pictures_of_one_name_are_refused(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PictureMetadata, "file_name", property(lambda about: "a.png"))
    with pytest.raises(UserError, match="line 2: the picture would have the same .* of line 1"):
        draw_list(model, [replace(ENTRIES[0], count=1), replace(ENTRIES[2], line=2)], tmp_path)


def test_a_list_needs_a_folder(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, not a folder"):
        draw_list(model, ENTRIES, tmp_path / "file")


def test_an_edit_and_a_variation_are_for_all_lines(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, variation = Edit(source=source()), Variation(seed=4, amount=0.5)
    entries = [ENTRIES[0], ENTRIES[2]]
    paths = draw_list(model, entries, tmp_path / "a", seed=3, edit=edit, variation=variation)
    (alone,) = sample_to_folder(
        model, "three green crosses", count=1, seed=5, out=tmp_path / "b", edit=edit,
        variation=variation,
    )  # fmt: skip
    assert paths[1][0].read_bytes() == alone.read_bytes()
    expected = generate(
        model, ["a ring"] * 2, [3, 3], edit=edit,
        variations=[variation, Variation(seed=5, amount=0.5)],
    )  # fmt: skip
    for path, image in zip(paths[0], expected, strict=True):
        np.testing.assert_array_equal(read_png(path), image)
    names = drawn(monkeypatch)
    draw_list(model, entries, tmp_path / "a", seed=3, edit=edit, variation=variation)
    assert not names
    with pytest.raises(UserError, match="line 2: the source is 64×64 px, the settings draw 64×32"):
        draw_list(model, ENTRIES[:2], tmp_path / "c", edit=edit)
    with pytest.raises(UserError, match="line 1: seed -1 is out of range"):
        draw_list(model, ENTRIES[:1], tmp_path / "c", variation=Variation(seed=-1))
    assert not (tmp_path / "c").exists()


def test_lines_with_pictures_and_loras_of_their_own(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, painted = save(tmp_path / "a.png", source(32, 48)), save(tmp_path / "m.png", mask())
    first, second = (LoraFile(path=lora_file(tmp_path / name, rank=r)) for name, r in LORAS)
    usual = Edit(source=source(), strength=0.9)
    edits = {
        "own": read_edit(image, strength=0.5),
        "as strong as usual": read_edit(image, strength=0.9),
        "usual": usual,
        "weaker": replace(usual, strength=0.4),
        "masked": replace(usual, mask=mask(), mask_name="m.png"),
    }
    entries = [
        PromptEntry(prompt="own", line=1, image=image, strength=0.5, loras=(second,)),
        PromptEntry(prompt="as strong as usual", line=2, image=image),
        PromptEntry(prompt="usual", line=3, loras=()),
        PromptEntry(prompt="weaker", line=4, strength=0.4, loras=(second, first)),
        PromptEntry(prompt="masked", line=5, mask=painted),
    ]
    changes = ModelChanges(loras=(first,))
    paths = draw_list(model, entries, tmp_path / "out", edit=usual, changes=changes)
    for entry, (path,) in zip(entries, paths, strict=True):
        edit = edits[entry.prompt]
        height_px, width_px = edit.source.shape[:2]
        (alone,) = sample_to_folder(
            ModelChanges(loras=changes.loras if entry.loras is None else entry.loras).of(model),
            entry.prompt,
            count=1,
            seed=0,
            out=tmp_path / "alone",
            settings=replace(model.settings, height_px=height_px, width_px=width_px),
            edit=edit,
        )
        assert (path.name, path.read_bytes()) == (alone.name, alone.read_bytes())
    names = drawn(monkeypatch)
    draw_list(model, entries, tmp_path / "out", edit=usual, changes=changes)
    assert names == []


LORAS = (("a.safetensors", 2), ("b.safetensors", 4))


def test_loras_are_merged_once_a_set_however_lines_take_turns(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [LoraFile(path=lora_file(tmp_path / name, rank=rank)) for name, rank in LORAS]
    entries = [
        PromptEntry(prompt=f"a ring {i}", line=i, loras=(files[i % 2],)) for i in range(1, 5)
    ]
    made: list[ModelChanges] = []
    of = ModelChanges.of
    monkeypatch.setattr(
        ModelChanges, "of", lambda self, model: made.append(self) or of(self, model)
    )
    told: list[str] = []
    paths = draw_list(
        model, entries, tmp_path / "out", changes=ModelChanges(quantization="int8"),
        warn=told.append,
    )  # fmt: skip
    assert [changes.loras for changes in made] == [(files[1],), (files[0],)]
    assert [text.startswith("int8 moves") for text in told] == [True, True]
    assert {read_metadata(path)["quantization"] for (path,) in paths} == {"int8"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"image": "absent.png"}, 'list.csv:7: "image": cannot read .*absent.png: it does not'),
        ({"image": "a.png", "mask": "tall.png"}, "the mask .*tall.png is 64×64 px, the picture"),
        ({"image": "a.png", "strength": 2.0}, "strength=2.0 must be above 0"),
        ({"image": "a.png", "changes": {"height_px": 64}}, "the source is 48×32 px, the settings"),
        ({"mask": "tall.png"}, 'list.csv:7: "mask" goes with "image", the picture to draw from'),
        ({"strength": 0.5}, 'list.csv:7: "strength" goes with "image"'),
        ({"loras": "absent.safetensors"}, 'list.csv:7: "lora": .*absent.safetensors'),
    ],
)
def test_files_of_a_line_that_cannot_be_used_are_told_before_drawing(
    model: Model, tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    save(tmp_path / "a.png", source(32, 48))
    save(tmp_path / "tall.png", mask())
    found: dict[str, Any] = {
        name: tmp_path / value if name in ("image", "mask") else value
        for name, value in given.items()
    }
    if "loras" in found:
        found["loras"] = (LoraFile(path=tmp_path / found["loras"]),)
    entries = [ENTRIES[0], PromptEntry(prompt="a", line=7, source="list.csv", **found)]
    with pytest.raises(UserError, match=told):
        draw_list(model, entries, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_changes_while_the_list_is_drawn_is_told(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, other = save(tmp_path / "a.png", source()), save(tmp_path / "b.png", source())
    lora = lora_file(tmp_path / "a.safetensors")
    first = PromptEntry(prompt="a", line=1, image=image)
    changes = {
        "image": (other, lambda *_: save(other, 255 - source())),
        "loras": ((LoraFile(path=lora),), lambda *_: lora_file(lora, rank=2)),
    }
    for name, (given, change) in changes.items():
        monkeypatch.setattr(folder, "save_picture", change)
        entries = [first, PromptEntry(prompt="b", line=2, **{name: given})]
        with pytest.raises(UserError, match="line 2: a picture, mask or LoRA was changed while"):
            draw_list(model, entries, tmp_path / "out")


def test_loras_of_lines_need_the_model_without(model: Model, tmp_path: Path) -> None:
    file = LoraFile(path=lora_file(tmp_path / "a.safetensors"))
    entry = PromptEntry(prompt="a", line=7, loras=(file,))
    with pytest.raises(UserError, match="line 7: .*test has LoRAs in its weights already"):
        draw_list(ModelChanges(loras=(file,)).of(model), [entry], tmp_path / "out")
