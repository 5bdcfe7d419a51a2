"""Tensors in parts read as if they had been written whole."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rectiflow.base.errors import CheckpointError
from rectiflow.distributed.sharding import Piece
from rectiflow.training.tensor_files import (
    SavedTensors,
    read_tensors,
    write_pieces,
    write_tensors,
)

WHOLE = {
    "matrix": torch.arange(14.0).view(7, 2),
    "few": torch.arange(2, dtype=torch.bfloat16),
    "count": torch.tensor(3.0),
}


def pieces_of(tensors: dict[str, Tensor], part: int, num_parts: int) -> dict[str, Piece]:
    """As FSDP cuts; what has no rows is whole in each."""
    found: dict[str, Piece] = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 0:
            found[name] = Piece(values=tensor, start=0, shape=tensor.shape)
            continue
        size = -(-len(tensor) // num_parts)
        start = min(part * size, len(tensor))
        found[name] = Piece(values=tensor[start : start + size], start=start, shape=tensor.shape)
    return found


def write(folder: Path, num_parts: int) -> list[Path]:
    return [
        write_pieces(folder, "w", pieces_of(WHOLE, part, num_parts), part=part, num_parts=num_parts)
        for part in range(num_parts)
    ]


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5])
def test_any_number_of_parts_reads_as_one(tmp_path: Path, num_parts: int) -> None:
    assert len(write(tmp_path, num_parts)) == num_parts
    saved = SavedTensors.of(tmp_path, "w")
    outlines = saved.outlines()
    assert outlines.keys() == WHOLE.keys()
    for name, tensor in WHOLE.items():
        outline = outlines[name]
        assert (outline.shape, outline.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(saved.read(name), tensor)
    assert all(torch.equal(tensor, WHOLE[name]) for name, tensor in saved.read_all().items())


@settings(max_examples=30)
@given(num_parts=st.integers(1, 5), first=st.integers(0, 7), number=st.integers(0, 7))
def test_any_rows_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, num_parts: int, first: int, number: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    write(folder, num_parts)
    number = min(number, 7 - first)
    rows = SavedTensors.of(folder, "w").read("matrix", (first, number))
    assert torch.equal(rows, WHOLE["matrix"][first : first + number])


def test_one_part_is_an_ordinary_file(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 1)
    assert path.name == "w.safetensors"
    assert all(torch.equal(read_tensors(path)[name], WHOLE[name]) for name in WHOLE)


def test_a_stem_is_not_taken_for_a_longer_one(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)})
    write_pieces(tmp_path, "w_0.1", pieces_of({"b": torch.zeros(2)}, 0, 2), part=0, num_parts=2)
    assert SavedTensors.of(tmp_path, "w").outlines().keys() == {"a"}


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_part_is_told(tmp_path: Path, missing: int) -> None:
    write(tmp_path, 3)[missing].unlink()
    with pytest.raises(CheckpointError, match=r"tensor '.*' is not whole in it and the files"):
        SavedTensors.of(tmp_path, "w")


def test_a_damaged_note_of_places_is_told(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"a": torch.zeros(2)}, metadata={"pieces": json.dumps({"a": [0, 2]})[:-1]})
    with pytest.raises(CheckpointError, match=r"w.safetensors is cut or damaged"):
        SavedTensors.of(tmp_path, "w")
