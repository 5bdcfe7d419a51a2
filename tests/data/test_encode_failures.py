"""A full disk, a killed run, foreign or damaged files: an encoded store is whole or not there."""

import errno
import signal
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from data.parts import (
    add_picture,
    assert_same_data,
    assert_same_rows,
    encode,
    files_of,
    make_folder,
)

from rectiflow.base import files as files_module
from rectiflow.base.errors import StoreError, UserError
from rectiflow.data.latent_store import LatentStore


@pytest.mark.parametrize("kind", ["latents", "text", "quarantine", "index", "store"])
def test_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = make_folder(tmp_path / "folder", 4)
    (folder / "stray.png").touch()
    encode(folder, tmp_path / "whole")
    out = tmp_path / "store"

    class FullDisk:
        def __init__(self, file: IO[bytes]) -> None:
            self._file = file

        def __enter__(self) -> "FullDisk":
            return self

        def __exit__(self, *error: object) -> None:
            self._file.close()

        def write(self, data: bytes) -> int:
            self._file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

    def open_full(path: Path, *arguments: object, **options: object) -> object:
        file = open(path, *arguments, **options)  # noqa: SIM115
        return FullDisk(file) if Path(path).name.startswith(f".{kind}") else file

    monkeypatch.setattr(files_module, "open", open_full, raising=False)
    with pytest.raises(UserError, match=r"cannot write .*: no space left on the disk; free some"):
        encode(folder, out)
    monkeypatch.undo()
    whole = files_of(tmp_path / "whole")
    left = files_of(out) if out.exists() else {}
    assert all(whole[name] == data for name, data in left.items())
    assert out.exists() == (kind != "latents")
    if out.exists():
        with pytest.raises(StoreError, match="is unfinished; run the encoding again"):
            LatentStore(out)
    encode(folder, out)
    assert files_of(out) == whole


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "folder", 1)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the store .*: a file is in the way; choose"):
        encode(folder, tmp_path / "file")
    with pytest.raises(UserError, match="cannot write the store .*: a part of the path is a file"):
        encode(folder, tmp_path / "file" / "store")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError, match="cannot write the store .*: no permission; choose another"):
        encode(folder, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("foreign", ["notes.txt", ".draft.tmp-1", ".tmp-1", "x.store.json.tmp-1"])
def test_foreign_folder_is_left_alone(tmp_path: Path, foreign: str) -> None:
    folder = make_folder(tmp_path / "folder", 1)
    out = tmp_path / "out"
    out.mkdir()
    # What a killed run leaves, in such a number that some of it is met before the foreign file.
    for number in range(20):
        (out / f".latents-{number:05d}.safetensors.tmp-1-ab").write_bytes(b"half")
    (out / foreign).write_text("mine")
    before = files_of(out)
    with pytest.raises(UserError, match="which is no part of a store; choose an empty folder"):
        encode(folder, out)
    assert files_of(out) == before


def test_what_file_browsers_leave_is_ignored(tmp_path: Path) -> None:
    out = tmp_path / "store"
    out.mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (out / name).write_bytes(b"x")
    encode(make_folder(tmp_path / "folder", 1), out)
    assert (out / ".DS_Store").read_bytes() == b"x"
    assert len(LatentStore(out)) == 1


def test_killed_between_index_and_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "folder", 2)
    encode(folder, tmp_path / "store")
    add_picture(folder, 2)

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("rectiflow.data.store_writer.save_config", kill)
        encode(folder, tmp_path / "store")
    with pytest.raises(StoreError, match="is not the one that store.json describes; run the enc"):
        LatentStore(tmp_path / "store")
    assert encode(folder, tmp_path / "store").num_latents_encoded == 0
    encode(folder, tmp_path / "fresh")
    assert_same_rows(tmp_path / "store", tmp_path / "fresh")


def test_damaged_shard_is_named_and_made_anew_when_removed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 12)
    encode(folder, tmp_path / "whole")
    encode(folder, tmp_path / "store", max_shard_bytes=8_000)
    path = tmp_path / "store" / "latents-00001.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(
        StoreError, match=r"latents-00001\.safetensors is damaged: .*; remove it and"
    ):
        encode(folder, tmp_path / "store", max_shard_bytes=8_000)
    path.unlink()
    report = encode(folder, tmp_path / "store", max_shard_bytes=8_000)
    assert 0 < report.num_latents_encoded < 12
    assert_same_rows(tmp_path / "whole", tmp_path / "store")
    assert_same_data(tmp_path / "whole", tmp_path / "store")


KILLED_RUN = """
import os, signal, sys
sys.path[:0] = ["tests"]
from pathlib import Path
import torch
torch.set_num_threads(1)
from data.parts import encode
from rectiflow.data import encode as encode_module
encode_module._TEXT_CHUNK = 4
limit = int(sys.argv[3])
def progress(done, total):
    if done >= limit:
        os.kill(os.getpid(), signal.SIGKILL)
encode(Path(sys.argv[1]), Path(sys.argv[2]), max_shard_bytes=3_000, batch_size=4, progress=progress)
"""


@pytest.mark.system
def test_killed_run_is_continued(tmp_path: Path, run_python: Callable[..., object]) -> None:
    """SIGKILL in the pictures, then in the captions; what was whole is kept."""
    folder = make_folder(tmp_path / "folder", 24)
    encode(folder, tmp_path / "whole")
    out = tmp_path / "store"
    (tmp_path / "killed.py").write_text(KILLED_RUN)
    for limit in (17, 40):
        done = run_python(str(tmp_path / "killed.py"), str(folder), str(out), str(limit))
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert list(out.glob("latents-*.safetensors"))
        (out / ".latents-00009.safetensors.tmp-1-ab").write_bytes(b"half")
        with pytest.raises(StoreError, match="is unfinished; run the encoding again"):
            LatentStore(out)
    report = encode(folder, out, max_shard_bytes=3_000, batch_size=4)
    assert report.num_latents_encoded == 0
    assert report.num_captions_encoded < 28
    assert not list(out.glob(".*"))
    assert {name: data for name, data in files_of(out).items() if "tmp" in name} == {}
    encode(folder, tmp_path / "fresh", max_shard_bytes=3_000, batch_size=4)
    assert_same_rows(out, tmp_path / "fresh")


def test_second_writer_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 2)

    def progress(done: int, total: int) -> None:
        with pytest.raises(StoreError, match="another run is writing the store"):
            encode(folder, tmp_path / "store")

    encode(folder, tmp_path / "store", progress=progress)
    assert len(LatentStore(tmp_path / "store")) == 2
