"""Files are whole or absent, and system errors come as one sentence with the path in it."""

import ctypes
import errno
import hashlib
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rectiflow.base import files
from rectiflow.base.errors import UserError
from rectiflow.base.files import (
    atomic_directory,
    atomic_write,
    explain_os_error,
    joined_directory,
    read_json,
    read_text,
    refuse_unwritable,
    refuse_used_folder,
    sha256_file,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("mode", "content"), [("wb", b"new"), ("w", "néw")])
def test_atomic_write_replaces(tmp_path: Path, mode: str, content: bytes | str) -> None:
    path = tmp_path / "made" / "on the way" / "a.txt"
    for _ in range(2):
        with atomic_write(path, mode) as file:
            file.write(content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert names(path.parent) == ["a.txt"]


def test_atomic_write_follows_the_umask(tmp_path: Path) -> None:
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.touch()
    with atomic_write(ours) as file:
        file.write(b"")
    assert ours.stat().st_mode == plain.stat().st_mode


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_atomic_write_refuses_other_modes(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match='mode is "wb" or "w", not \'a\''),
        atomic_write(tmp_path / "a", "a"),
    ):
        pass


def fail_with(code: int) -> None:
    raise OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "no space left on the disk; free some"),
        (errno.EDQUOT, "quota is used up"),
        (errno.EROFS, "read-only; choose another place"),
        (errno.EACCES, "no permission; choose another place"),
    ],
)
def test_a_disk_that_refuses_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    monkeypatch.setattr(files.os, "fsync", lambda _: fail_with(code))
    with pytest.raises(UserError, match=f"cannot write .*a.bin: .*{advice}"):
        write_json(tmp_path / "a.bin", 1)
    with (
        pytest.raises(UserError, match=f"cannot write .*folder: .*{advice}"),
        atomic_directory(tmp_path / "folder") as folder,
    ):
        (folder / "x").touch()
    assert names(tmp_path) == []


def test_real_system_errors(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*file/a: a file is in the way"):
        write_json(tmp_path / "file" / "a", 1)
    with pytest.raises(UserError, match=r"file/b/a: a part of the path is a file, not a folder"):
        write_json(tmp_path / "file" / "b" / "a", 1)
    with pytest.raises(UserError, match=r"cannot write .*folder: it is a folder, not a file"):
        write_json(tmp_path / "folder", 1)
    with pytest.raises(UserError, match=r"cannot write .*: the name is too long"):
        write_json(tmp_path / ("x" * 250), 1)
    assert names(tmp_path) == ["file", "folder"]


def test_another_files_error_passes_through(tmp_path: Path) -> None:
    """Only our own file's trouble is explained: a missing input is not an unwritable output."""
    missing = tmp_path / "elsewhere" / "input"
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "out" / "a"):
        missing.read_bytes()
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "out" / "d"):
        missing.read_bytes()


def test_unknown_errors_keep_the_systems_words() -> None:
    error = explain_os_error(OSError(errno.EIO, "Input/output error"), "a/b", "read")
    assert str(error) == "cannot read a/b: Input/output error"


def test_atomic_directory_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    with atomic_directory(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("x")
        assert not path.exists()
    assert (path / "sub" / "a").read_text() == "x"
    assert names(path.parent) == ["out"]


def test_atomic_directory_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "out") as folder:
        (folder / "a").touch()
        raise ZeroDivisionError
    assert names(tmp_path) == []


class _Library:
    """A C library that notes whose file system is synced, and may refuse or not know how."""

    def __init__(self, code: int = 0, *, has_syncfs: bool = True) -> None:
        self.synced: list[str] = []
        self._code = code
        if has_syncfs:
            self.syncfs = self._sync

    def _sync(self, descriptor: int) -> int:
        self.synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        ctypes.set_errno(self._code)
        return -1 if self._code else 0


@pytest.mark.parametrize("has_syncfs", [True, False])
@pytest.mark.parametrize("num_files", [3, 4])
def test_many_files_are_synced_at_once(
    num_files: int, has_syncfs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, num_syncs, fsync = _Library(has_syncfs=has_syncfs), 0, os.fsync

    def count(descriptor: int) -> None:
        nonlocal num_syncs
        num_syncs += 1
        fsync(descriptor)

    monkeypatch.setattr(files, "_MANY_FILES", 3)
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: library)
    monkeypatch.setattr(files.os, "fsync", count)
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "deep").mkdir()
        for index in range(num_files):
            (folder / "deep" / str(index)).touch()
    at_once = num_files > 3 and has_syncfs
    assert library.synced == ([str(folder)] if at_once else [])
    # Besides all files and both folders, the one that it appears in.
    assert num_syncs == (1 if at_once else num_files + 3)
    assert len(names(tmp_path / "out" / "deep")) == num_files


def test_a_file_system_that_cannot_be_synced_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MANY_FILES", 0)
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: _Library(errno.ENOSPC))
    with (
        pytest.raises(UserError, match="cannot write .*out: no space left on the disk"),
        atomic_directory(tmp_path / "out") as folder,
    ):
        (folder / "a").touch()
    assert not any(tmp_path.iterdir())


def test_used_folders_are_refused(tmp_path: Path) -> None:
    used, empty, file = tmp_path / "used", tmp_path / "empty", tmp_path / "file"
    used.mkdir(), empty.mkdir(), file.touch()
    (used / "a").touch()
    refuse_used_folder(empty)
    refuse_used_folder(tmp_path / "absent")
    with atomic_directory(empty) as folder:
        (folder / "a").touch()
    assert names(empty) == ["a"]
    with pytest.raises(UserError, match="used: the folder is not empty; choose another"):
        refuse_used_folder(used)
    with pytest.raises(UserError, match="file: a file is in the way; choose another"):
        refuse_used_folder(file)
    with pytest.raises(UserError, match="the name is too long"):
        refuse_used_folder(tmp_path / ("x" * 300))


def test_a_folder_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        link = tmp_path / f"link to {name}"
        link.symlink_to(tmp_path / name)
        with atomic_directory(link) as folder:
            (folder / "a").touch()
        assert link.is_symlink()
        assert names(tmp_path / name) == ["a"]
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(UserError, match="circle: a file is in the way; choose another"):
        refuse_used_folder(tmp_path / "circle")
    (tmp_path / "link to shared").symlink_to(tmp_path / "shared")
    for first, second in (("link to shared", "shared"), ("shared", "link to shared")):
        with (
            atomic_directory(tmp_path / first, "token") as one,
            joined_directory(tmp_path / second, "token") as other,
        ):
            assert one == other
        (tmp_path / "shared").rmdir()


@pytest.mark.parametrize("refuse", [refuse_used_folder, lambda p: atomic_directory(p).__enter__()])
def test_folders_that_cannot_be_replaced_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for here in (".", "", tmp_path):
        with pytest.raises(UserError, match=r"cannot write .*: it is the current folder, which a"):
            refuse(here)
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(files.os.path, "ismount", lambda path: path == tmp_path / "disk")
    with pytest.raises(UserError, match="cannot write disk: a file system is mounted there, or"):
        refuse("disk")
    assert names(tmp_path) == ["disk"]
    assert names(tmp_path / "disk") == []


def test_unwritable_places_are_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    refuse_unwritable(tmp_path / "file")
    refuse_unwritable(tmp_path / "new" / "deep" / "a.json")
    with pytest.raises(UserError, match="it is a folder, not a file"):
        refuse_unwritable(tmp_path)
    with pytest.raises(UserError, match="a part of the path is a file, not a folder"):
        refuse_unwritable(tmp_path / "file" / "b" / "a.json")
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.raises(UserError, match="no permission; choose another place"):
        refuse_unwritable(tmp_path / "a.json")
    assert names(tmp_path) == ["file"]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, "old")
    source = f"""
import os, signal
from rectiflow.base.files import atomic_write
with atomic_write({str(path)!r}) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run([sys.executable, "-c", source], check=False)
    assert result.returncode == -signal.SIGKILL
    assert read_json(path) == "old"


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "ü"], "b": {}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "ü" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "nan.json", float("nan"))
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe\x00"])
def test_read_json_names_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is not valid JSON .*cut or damaged"):
        read_json(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have(tmp_path: Path, number: str) -> None:
    (tmp_path / "a.json").write_text(f'{{"a": {number}}}')
    with pytest.raises(UserError, match=f"a.json is not valid JSON .{number} is no number of JSON"):
        read_json(tmp_path / "a.json")
    found = read_json(tmp_path / "a.json", may_be_non_finite=True)
    assert not math.isfinite(found["a"])


def test_read_json_of_endless_brackets(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"deep\.json nests too deeply to be read"):
        read_json(tmp_path / "deep.json")


def test_a_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1, "b": {"deep": 1, "deep": 1}}')
    with pytest.raises(
        UserError, match=r"a\.json has the key 'deep' twice in one object, .* remove"
    ):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a": 1}]')
    assert read_json(tmp_path / "a.json") == [{"a": 1}, {"a": 1}]


def test_missing_files_are_named(tmp_path: Path) -> None:
    for read in (read_json, sha256_file):
        with pytest.raises(UserError, match="cannot read .*absent: it does not exist"):
            read(tmp_path / "absent")


def test_sha256_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 300_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"x" * 300_000).hexdigest()


def test_text_is_utf8_without_its_mark(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffé\r\n".encode())
    assert read_text(tmp_path / "a") == "é\r\n"
    (tmp_path / "a").write_bytes(b"a\nb\n\xff")
    with pytest.raises(UserError, match="a:3: the text is not UTF-8; save the file as UTF-8"):
        read_text(tmp_path / "a")
    with pytest.raises(UserError, match="cannot look at .*none: it does not exist"):
        read_text(tmp_path / "none", doing="look at")


@pytest.mark.parametrize("write", [refuse_unwritable, lambda path: write_json(path, {})])
def test_only_files_are_replaced(write: Any, tmp_path: Path, monkeypatch: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to it").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link to it"):
        with pytest.raises(UserError, match=f"cannot write .*{name}: it is a device, a pipe or"):
            write(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(UserError, match="cannot write .*the name is too long"):
        write_json(tmp_path / (300 * "n"), {})
    monkeypatch.chdir(tmp_path)
    for folder in (".", "/", "", tmp_path):
        with pytest.raises(UserError, match=r"cannot write .*: it is a folder"):
            write(folder)


def test_behind_a_link_the_file_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    for name in ("old.json", "new.json"):
        link = tmp_path / f"link to {name}"
        link.symlink_to(tmp_path / name)
    write_json(tmp_path / "old.json", {"a": 1})
    for name in ("old.json", "new.json"):
        link = tmp_path / f"link to {name}"
        write_json(link, {"a": 2})
        assert link.is_symlink()
        assert read_json(tmp_path / name) == {"a": 2}
