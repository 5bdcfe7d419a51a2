import dataclasses
import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.base.files import explain_os_error, sha256_file
from rectiflow.training import checkpoint
from rectiflow.training.checkpoint import (
    load_latest,
    read_header,
    remove_old,
    return_to_latest,
    save_checkpoint,
)
from rectiflow.training.state import TrainState, refuse_unlike
from rectiflow.training.step import train_step
from rectiflow.training.tensor_files import read_tensors, write_tensors

STORE = "store"
RECIPE = tiny_recipe(keep_last=2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 1 and 2."""
    state, feed = TrainState.start(RECIPE), FakeFeed()
    for step in range(2):
        train_step(state, feed.batch_at(step), RECIPE)
        save_checkpoint(tmp_path, state.snapshot(), RECIPE, STORE)
    return tmp_path


def newest(run: Path) -> Path:
    return run / "checkpoints" / "step_00000002"


def cut_in_half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def lose_a_key(path: Path) -> None:
    header = json.loads((path.parent / "state.json").read_text())
    del header["loss_window"]
    (path.parent / "state.json").write_text(json.dumps(header))


def test_loading_returns_the_same_state(run: Path) -> None:
    state = load_latest(run, RECIPE, STORE)
    assert state is not None
    expected = TrainState.start(RECIPE)
    for step in range(2):
        train_step(expected, FakeFeed().batch_at(step), RECIPE)
    assert state.step == 2
    assert state.loss_window == expected.loss_window
    for stem, tensors in expected.tensors().items():
        assert all(torch.equal(v, state.tensors()[stem][k]) for k, v in tensors.items())


def test_a_run_without_checkpoints_has_no_state(tmp_path: Path) -> None:
    assert load_latest(tmp_path, RECIPE, STORE) is None


def test_the_last_few_are_kept(run: Path) -> None:
    state = load_latest(run, RECIPE, STORE)
    assert state is not None
    train_step(state, FakeFeed().batch_at(2), RECIPE)
    save_checkpoint(run, state.snapshot(), RECIPE, STORE)
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"step_00000002", "step_00000003"}


def test_nothing_is_pickled(run: Path) -> None:
    suffixes = {path.suffix for path in run.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}


def test_files_are_as_readable_as_others_of_the_user(run: Path) -> None:
    (run / "other").touch()
    expected = stat.S_IMODE((run / "other").stat().st_mode)
    assert stat.S_IMODE((newest(run) / "ema.safetensors").stat().st_mode) == expected


@pytest.mark.parametrize(
    ("file", "damage", "text"),
    [
        ("weights.safetensors", cut_in_half, "weights.safetensors is cut or damaged"),
        ("optimizer.safetensors", flip_a_byte, "optimizer.safetensors is cut or damaged"),
        ("ema.safetensors", Path.unlink, "cannot read .*ema.safetensors: it does not exist"),
        ("state.json", cut_in_half, "state.json is not valid JSON"),
        ("state.json", Path.unlink, "cannot read .*state.json: it does not exist"),
        ("weights.safetensors", lose_a_key, "state.json lacks 'loss_window'; it is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_aloud(
    run: Path,
    file: str,
    damage: Callable[[Path], None],
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = newest(run)
    damage(path / file)
    with pytest.raises(CheckpointError, match=text):
        read_header(path)
    state = load_latest(run, RECIPE, STORE)
    assert state is not None
    assert state.step == 1
    said = capsys.readouterr().err
    assert said.startswith(f"rectiflow: skipping a damaged checkpoint, now {path}.damaged: ")
    # The same step is reached again; the damaged one is none of those that are kept.
    train_step(state, FakeFeed().batch_at(1), RECIPE)
    save_checkpoint(run, state.snapshot(), RECIPE, STORE)
    read_header(path)
    names = {each.name for each in (run / "checkpoints").iterdir()}
    assert names == {"step_00000001", "step_00000002", "step_00000002.damaged"}


def test_a_checkpoint_that_is_out_of_reach_is_not_passed_over(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(path: Path) -> str:
        error = OSError(errno.ESTALE, "Stale file handle")
        raise explain_os_error(error, path, "read") from error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sha256_file", stale)
        with pytest.raises(UserError, match="Stale file handle"):
            load_latest(run, RECIPE, STORE)
    state = load_latest(run, RECIPE, STORE)
    assert state is not None
    assert state.step == 2


def test_a_header_of_another_step_is_damaged(run: Path) -> None:
    path = newest(run) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 1}))
    state = load_latest(run, RECIPE, STORE)
    assert state is not None
    assert state.step == 1
    assert (path.parent.with_name("step_00000002.damaged")).is_dir()


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def busy(path: Path, other: Path) -> Path:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", busy)
    remove_old(run, 2, 1)
    assert "an old checkpoint is left where it is: cannot rename" in capsys.readouterr().err
    assert len(list((run / "checkpoints").iterdir())) == 2


def test_a_run_with_only_damaged_checkpoints_does_not_start_over(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        cut_in_half(path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"no usable checkpoint in .* remove this one to sta"):
        load_latest(run, RECIPE, STORE)


def test_another_format_is_refused(run: Path) -> None:
    path = newest(run) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    with pytest.raises(UserError, match="has checkpoint format 9, this version reads 1"):
        load_latest(run, RECIPE, STORE)


def test_a_checkpoint_of_another_depth_is_refused(run: Path) -> None:
    deeper = tiny_recipe(backbone=RECIPE.backbone.__class__(depth=2, context_dim=32, pooled_dim=24))
    with pytest.raises(
        CheckpointError, match=r"backbone.depth is 1 in the run and 2 in the recipe"
    ):
        load_latest(run, deeper, STORE)


def live_tensors(state: TrainState) -> dict[str, torch.Tensor]:
    return {f"{s}.{k}": v for s, tensors in state.tensors().items() for k, v in tensors.items()}


def test_going_back_loads_into_the_tensors_that_are_there(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, expected = (load_latest(run, RECIPE, STORE) for _ in range(2))
    assert state is not None
    assert expected is not None
    for step in (2, 3):
        train_step(state, FakeFeed().batch_at(step), RECIPE)
    state.elapsed_s = 99.0
    places = {name: tensor.data_ptr() for name, tensor in live_tensors(state).items()}
    monkeypatch.setattr(TrainState, "start", lambda *_: pytest.fail("built a second state"))
    assert return_to_latest(state, run, RECIPE, STORE)
    found = live_tensors(state)
    assert {name: tensor.data_ptr() for name, tensor in found.items()} == places
    assert all(torch.equal(found[k], v) for k, v in live_tensors(expected).items())
    assert (state.step, state.loss_window) == (2, expected.loss_window)
    # The time that was spent on what is taken back has passed nevertheless.
    assert state.elapsed_s == 99.0


def test_there_may_be_nothing_to_go_back_to(tmp_path: Path) -> None:
    state = TrainState.start(RECIPE)
    assert not return_to_latest(state, tmp_path, RECIPE, STORE)


def rename_a_tensor(path: Path) -> None:
    """In a file that is whole: its hash is right."""
    tensors = read_tensors(path)
    tensors["other"] = tensors.pop("num_steps").clone()
    write_tensors(path, {name: tensor.clone() for name, tensor in tensors.items()})
    header = json.loads((path.parent / "state.json").read_text())
    header["sha256"][path.name] = sha256_file(path)
    (path.parent / "state.json").write_text(json.dumps(header))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (cut_in_half, "no usable checkpoint in .*optimizer.safetensors is cut or damaged"),
        (rename_a_tensor, "optimizer.safetensors (lacks|has an unknown) tensor"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_not_loaded_in_part(
    run: Path, damage: Callable[[Path], None], text: str
) -> None:
    state = load_latest(run, RECIPE, STORE)
    assert state is not None
    train_step(state, FakeFeed().batch_at(2), RECIPE)
    before = {name: tensor.clone() for name, tensor in live_tensors(state).items()}
    for path in (run / "checkpoints").iterdir():
        damage(path / "optimizer.safetensors")  # loaded after the weights
    with pytest.raises(CheckpointError, match=text):
        return_to_latest(state, run, RECIPE, STORE)
    assert state.step == 3
    assert all(torch.equal(before[k], v) for k, v in live_tensors(state).items())


def test_tensors_of_another_model_are_refused_by_name() -> None:
    own = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"w.safetensors lacks tensor 'b': it was written"):
        refuse_unlike({"a": torch.zeros(2)}, own, what="w.safetensors")
    with pytest.raises(CheckpointError, match=r"has an unknown tensor 'c'"):
        refuse_unlike(own | {"c": torch.zeros(1)}, own, what="w.safetensors")
    with pytest.raises(CheckpointError, match=r"'b' is torch.float32 \[4\], this recipe needs"):
        refuse_unlike(own | {"b": torch.zeros(4)}, own, what="w.safetensors")


def test_a_cut_or_missing_tensor_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.arange(5)})
    assert torch.equal(read_tensors(path)["a"], torch.arange(5))
    cut_in_half(path)
    with pytest.raises(CheckpointError, match=r"x.safetensors is cut or damaged \(.*\); fetch"):
        read_tensors(path)
    with pytest.raises(CheckpointError, match=r"cannot read .*y.safetensors: it does not exist"):
        read_tensors(tmp_path / "y.safetensors")


def test_a_file_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"cannot write .*nowhere/x.safetensors: it does not exist"):
        write_tensors(tmp_path / "nowhere" / "x.safetensors", {"a": torch.zeros(1)})

    def fill_the_disk(*_: object) -> None:
        raise safetensors.SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", fill_the_disk)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device .*; free some"):
        write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})


def test_a_checkpoint_that_cannot_be_finished_leaves_the_former_ones(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_latest(run, RECIPE, STORE)
    assert state is not None
    state.step = 3

    def fill_the_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill_the_disk)
    with pytest.raises(UserError, match="no space left on the disk; free some"):
        save_checkpoint(run, state.snapshot(), RECIPE, STORE)
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"step_00000001", "step_00000002"}


def test_a_part_is_done_with_the_folder_once_its_note_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process may then rename the folder at any moment, as it does here at once."""
    real = os.replace

    def replace_and_rename(source: Path, target: Path) -> None:
        real(source, target)
        if Path(target).name.startswith("part-"):
            real(Path(target).parent, tmp_path / "renamed")

    monkeypatch.setattr(os, "replace", replace_and_rename)
    snapshot = TrainState.start(RECIPE).snapshot()
    assert snapshot is not None
    second = dataclasses.replace(snapshot, part=1, num_parts=2)
    assert save_checkpoint(tmp_path / "run", second, RECIPE, STORE, "token") is None
    hashes = json.loads((tmp_path / "renamed" / "part-00002.json").read_text())
    assert hashes == {f.name: sha256_file(f) for f in (tmp_path / "renamed").glob("*.safetensors")}
