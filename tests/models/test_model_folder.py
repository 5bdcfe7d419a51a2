"""Which model a name or path means."""

from pathlib import Path

import pytest

from rectiflow.base.errors import UserError
from rectiflow.models.model_folder import find_model_folder, is_own_model
from rectiflow.models.shipped import shipped_path


def test_a_folder_called_like_a_shipped_model_is_taken_if_a_model_lies_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("tiny", "tiny-mmdit"):
        assert is_own_model(folder)
        assert find_model_folder(folder) == shipped_path(folder)
    pictures = Path("tiny")
    pictures.mkdir()
    (pictures / "captions.jsonl").write_text("{}")
    assert is_own_model("tiny")
    assert find_model_folder("tiny") == shipped_path("tiny")
    run = Path("tiny-mmdit")
    (run / "model").mkdir(parents=True)
    (run / "model" / "model.json").write_text("{}")
    assert is_own_model("tiny-mmdit")
    assert find_model_folder("tiny-mmdit") == run / "model"
    (run / "model" / "model.json").rename(run / "model" / "model_index.json")
    assert not is_own_model("tiny-mmdit")


def test_what_is_no_model_of_ours_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match="no model yet: .* with the command that began it"):
        find_model_folder(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="is a diffusers pipeline, and here a model of ours is"):
        find_model_folder(tmp_path)
    (tmp_path / "model" / "lora.safetensors").write_text("")
    (tmp_path / "model" / "model_index.json").unlink()
    with pytest.raises(UserError, match="holds a LoRA, .*rectiflow sample MODEL PROMPT --lora"):
        find_model_folder(tmp_path)
