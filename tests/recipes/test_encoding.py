"""Whether the parts that ship made a store is told without loading the text encoders."""

from pathlib import Path

import pytest
from data.parts import HashedText, encode, make_folder

from rectiflow.base.errors import StoreError
from rectiflow.models import shipped
from rectiflow.models.shipped import load_autoencoder, load_conditioner, load_prompt_encoder
from rectiflow.recipes.encoding import refuse_store_of_other_parts


class ShippedByName(HashedText):
    """What the hash says, under the fingerprints of the encoders that ship."""

    def fingerprints(self) -> dict[str, str]:
        return load_prompt_encoder().fingerprints()


def test_a_store_of_other_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, autoencoder = make_folder(tmp_path / "folder", 2), load_autoencoder()
    encode(folder, tmp_path / "text", autoencoder=autoencoder)
    encode(folder, tmp_path / "latents", conditioner=ShippedByName())
    encode(folder, tmp_path / "ours", autoencoder=autoencoder, conditioner=ShippedByName())

    def refuse_to_load(*_: object) -> None:
        raise AssertionError("the text encoders were loaded")

    monkeypatch.setattr(shipped, "load_conditioner", refuse_to_load)
    refuse_store_of_other_parts(tmp_path / "ours")
    with pytest.raises(StoreError, match="encoded by another text encoder clip_g"):
        refuse_store_of_other_parts(tmp_path / "text")
    with pytest.raises(StoreError, match="encoded by another autoencoder"):
        refuse_store_of_other_parts(tmp_path / "latents")
    with pytest.raises(StoreError, match="there is no latent store in .*none"):
        refuse_store_of_other_parts(tmp_path / "none")


def test_the_card_has_the_fingerprints_that_the_weights_give() -> None:
    assert load_prompt_encoder().fingerprints() == load_conditioner().fingerprints()
