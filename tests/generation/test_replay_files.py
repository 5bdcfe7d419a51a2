"""What a picture was drawn from is found by name, believed by hash, and the picture is the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from generation.tiny_edits import lora_file, mask, save, source
from tiny_model import tiny_model

from rectiflow.base.errors import UserError
from rectiflow.generation import replay as replaying
from rectiflow.generation.edit_files import read_edit
from rectiflow.generation.folder import sample_to_folder, save_picture
from rectiflow.generation.load_settings import LoraFile
from rectiflow.generation.loras import with_loras
from rectiflow.generation.model import Model
from rectiflow.generation.pictures import read_png
from rectiflow.generation.replay import Replay, replay
from rectiflow.generation.replay_files import ReplayFiles
from rectiflow.generation.variations import Variation


@dataclass
class Drawn:
    model: Model
    files: Path
    picture: Path

    def replay(self, **files: Path | tuple[Path, ...]) -> Replay:
        return replay(self.picture, model=self.model, files=ReplayFiles(**files))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """A picture of all of it, whose files lie in another folder."""
    model, files = tiny_model(num_steps=2), tmp_path_factory.mktemp("files")
    edit = read_edit(
        save(files / "source.png", source()), save(files / "mask.png", mask()), strength=0.5
    )
    style = lora_file(files / "style.safetensors", text="clip_g")
    (picture,) = sample_to_folder(
        with_loras(model, [LoraFile(path=style, weight=0.5)]),
        "a ring",
        count=1,
        seed=3,
        out=tmp_path_factory.mktemp("pictures"),
        edit=edit,
        variation=Variation(seed=9, amount=0.3),
    )
    return Drawn(model=model, files=files, picture=picture)


def test_files_are_given_or_found_by_their_names(
    drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {name: drawn.files / f"{name}.png" for name in ("image", "mask")}
    given["image"] = drawn.files / "source.png"
    style = drawn.files / "style.safetensors"
    with pytest.raises(
        UserError, match=r"with the picture 'source.png' \(SHA-256 \w{12}…\), which .*\(--image\)"
    ):
        drawn.replay()
    with pytest.raises(UserError, match=r"the mask 'mask.png' .* neither beside it .*\(--mask\)"):
        drawn.replay(image=given["image"])
    with pytest.raises(UserError, match=r"the LoRA 'style.safetensors' .*\(--lora\)"):
        drawn.replay(**given)
    assert str(drawn.replay(**given, loras=(style,))) == "identical"
    # In the current folder, but another of that name; beside the picture, the one of then.
    save(tmp_path / "source.png", source(32, 64))
    beside = drawn.picture.parent
    for name in ("source.png", "mask.png", "style.safetensors"):
        (beside / name).write_bytes((drawn.files / name).read_bytes())
    assert str(drawn.replay()) == "identical"
    monkeypatch.chdir(drawn.files)
    for name in ("source.png", "mask.png", "style.safetensors"):
        (beside / name).unlink()
    assert str(drawn.replay()) == "identical"


def test_files_of_other_content_are_refused(drawn: Drawn, tmp_path: Path) -> None:
    image, painted = drawn.files / "source.png", drawn.files / "mask.png"
    told = r"drawn with a {} of SHA-256 \w{{12}}…, but .*{} has SHA-256 \w{{12}}…; give the {}"
    with pytest.raises(UserError, match=told.format("picture", "mask.png", "picture")):
        drawn.replay(image=painted)
    with pytest.raises(UserError, match=told.format("mask", "source.png", "mask")):
        drawn.replay(image=image, mask=image)
    other = lora_file(tmp_path / "other.safetensors", rank=1)
    told = r"other.safetensors \(SHA-256 \w{12}…\) is none of the LoRAs .*style.safetensors \(SHA-"
    with pytest.raises(UserError, match=told):
        drawn.replay(image=image, mask=painted, loras=(other,))


def test_files_that_a_picture_has_no_use_for_are_refused(drawn: Drawn, tmp_path: Path) -> None:
    (plain,) = sample_to_folder(drawn.model, "a ring", count=1, seed=3, out=tmp_path)
    image, style = drawn.files / "source.png", drawn.files / "style.safetensors"
    for files, told in (
        (ReplayFiles(image=image), "was drawn from no picture; leave out --image"),
        (ReplayFiles(mask=image), "was drawn under no mask; leave out --mask"),
        (ReplayFiles(loras=(style,)), "was drawn without LoRAs; leave out --lora"),
    ):
        with pytest.raises(UserError, match=told):
            replay(plain, model=drawn.model, files=files)


def test_a_name_leads_nowhere_else(drawn: Drawn, tmp_path: Path) -> None:
    about = replaying._read(drawn.picture)
    assert about.edit is not None
    outside = replace(about.edit.source, name=f"../{drawn.files.name}/source.png")
    save_picture(
        tmp_path / "a.png",
        read_png(drawn.picture),
        replace(about, edit=replace(about.edit, source=outside), loras=()),
    )
    with pytest.raises(UserError, match="neither beside it nor in the current folder"):
        replay(tmp_path / "a.png", model=drawn.model)


def test_a_model_that_has_its_loras_already(drawn: Drawn) -> None:
    files = ReplayFiles(image=drawn.files / "source.png", mask=drawn.files / "mask.png")
    style = LoraFile(path=drawn.files / "style.safetensors", weight=0.25)
    result = replay(drawn.picture, model=with_loras(drawn.model, [style]), files=files)
    assert not result.is_identical
    assert "LoRAs: style.safetensors by 0.5 (SHA-256 " in str(result)
    assert "then, style.safetensors by 0.25 (SHA-256 " in str(result)
