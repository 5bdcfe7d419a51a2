"""What is cached is what would be made anew, and a cache that cannot be used does no harm."""

import json
import os

import pytest

from rectiflow.base import cache
from rectiflow.base.cache import cache_folder, cached_sha256
from rectiflow.base.errors import UserError
from rectiflow.base.files import sha256_file


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECTIFLOW_CACHE", str(tmp_path / "cache"))


def test_a_hash_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = cached_sha256(path)
    assert first == sha256_file(path)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "sha256_file", lambda path: pytest.fail("read again"))
        assert cached_sha256(path) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert cached_sha256(path) == sha256_file(path) != first


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_a_damaged_cache_is_done_without(tmp_path, content):
    path, known = tmp_path / "a", cache_folder() / "hashes.json"
    path.write_bytes(b"one")
    known.parent.mkdir()
    known.write_text(content.replace('"a"', json.dumps(str(path))))
    assert cached_sha256(path) == sha256_file(path)


def test_an_unwritable_cache_is_done_without(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    monkeypatch.setenv("RECTIFLOW_CACHE", str(path))
    assert cached_sha256(path) == sha256_file(path)
    with pytest.raises(UserError, match="cannot read .*: it does not exist"):
        cached_sha256(tmp_path / "b")


def test_a_path_that_is_no_text_is_hashed_each_time(tmp_path):
    other, path = tmp_path / "a", tmp_path / os.fsdecode(b"caf\xe9")
    for each in (other, path):
        each.write_bytes(b"one")
        assert cached_sha256(each) == sha256_file(each)
    assert list(json.loads((cache_folder() / "hashes.json").read_text())) == [str(other)]


def test_without_a_home_it_is_done_without(tmp_path, monkeypatch):
    monkeypatch.delenv("RECTIFLOW_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_bytes(b"one")
    assert cached_sha256("a") == sha256_file("a")
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("RECTIFLOW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "rectiflow"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rectiflow"
