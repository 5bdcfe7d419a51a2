"""Shipped parts encode where they are told; whether they made a store is told without loading."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from data.parts import HashedText, MeanColors, encode, make_folder, tiny_autoencoder
from tiny_model import tiny_conditioner

from rectiflow.base.errors import StoreError
from rectiflow.generation import frozen_parts
from rectiflow.generation.load_settings import LoadSettings
from rectiflow.models import shipped
from rectiflow.models.shipped import load_autoencoder, load_conditioner, load_prompt_encoder
from rectiflow.recipes import encoding
from rectiflow.recipes.encoding import encode_with_parts, parts_of_store


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
    parts_of_store(tmp_path / "ours")
    with pytest.raises(StoreError, match="encoded by another text encoder clip_g"):
        parts_of_store(tmp_path / "text")
    with pytest.raises(StoreError, match="encoded by another autoencoder"):
        parts_of_store(tmp_path / "latents")
    with pytest.raises(StoreError, match="there is no latent store in .*none"):
        parts_of_store(tmp_path / "none")


def test_every_part_computes_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[str, torch.device]] = []

    def part(name: str, value: Any) -> Callable[[], Any]:
        def to(device: torch.device) -> Any:
            moved.append((name, device))
            return value

        value.to = to
        return lambda *_: value

    parts = {
        "load_autoencoder": tiny_autoencoder(),
        "load_prompt_encoder": tiny_conditioner(),
        "load_image_tower": MeanColors(),
    }
    for name, value in parts.items():
        where = encoding if name == "load_image_tower" else frozen_parts
        monkeypatch.setattr(where, name, part(name, value))
    folder, device = make_folder(tmp_path / "folder", 2), torch.device("cpu:0")
    load = LoadSettings(device=str(device))
    report = encode_with_parts(
        folder, tmp_path / "store", resolution_px=32, with_features=True, load=load
    )
    assert report.num_samples == 2
    assert sorted(moved) == [(name, device) for name in sorted(parts)]


def test_the_card_has_the_fingerprints_that_the_weights_give() -> None:
    assert load_prompt_encoder().fingerprints() == load_conditioner().fingerprints()
