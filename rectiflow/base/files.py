"""Files that are either whole or absent, and system errors told in words.

Everything that is written for keeps goes to a temporary sibling first, is synced to the disk and
then renamed. A process killed at any moment leaves the old file, or the new one, or a `.tmp-`
sibling that nothing reads.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rectiflow.base.errors import UserError

_ADVICE = {
    errno.ENOENT: "it does not exist; check the spelling",
    errno.EACCES: "no permission; choose another place or change the permissions",
    errno.EPERM: "no permission; choose another place or change the permissions",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOSPC: "no space left on the disk; free some and run the command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the command again",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another place",
    errno.EISDIR: "it is a folder, not a file",
    errno.EEXIST: "a file is in the way; choose another place or remove it",
    errno.ENOTEMPTY: "the folder exists and is not empty; choose another place or remove it",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EBUSY: "a file system is mounted there, or it is in use; choose a folder in it",
}

#: A folder with more is synced with its whole file system, which takes less than a sync of each.
_MANY_FILES = 1000


def explain_os_error(error: OSError, path: Path | str, doing: str) -> UserError:
    """The `UserError` for a system error: what was tried, where, why it failed, what to do."""
    reason = _ADVICE.get(error.errno or 0, error.strerror or str(error))
    return UserError(f"cannot {doing} {path}: {reason}")


@contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Generator[IO[Any], None, None]:
    """Opens a temporary sibling for writing and renames it to `path` when the block ends well.

    `mode` is "wb" or "w" (UTF-8). Missing folders are made; where `path` is a link, the file is
    replaced that it leads to. After an error `path` is as it was.

    Raises:
        UserError: the file cannot be written (permission, disk full, a folder or device there).
        ValueError: another mode.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f'atomic_write replaces whole files: mode is "wb" or "w", not {mode!r}')
    path = _file_to_replace(path)
    temporary = _temporary_sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if not _is_about(error, temporary, path):
            raise
        raise explain_os_error(error, path, "write") from error
    finally:
        with suppress(OSError):  # gone after the rename; or the folder never came to be
            temporary.unlink()


@contextmanager
def atomic_directory(path: Path | str, token: str | None = None) -> Generator[Path, None, None]:
    """Yields a temporary sibling folder that becomes `path` when the block ends well.

    Every file in it is synced before the rename. `path` must not exist, or be an empty folder that
    can be replaced, or a link to either, which stays. After an error nothing is left. Other
    processes that are given the same `token` may write into it meanwhile (`joined_directory`).

    Raises:
        UserError: as `refuse_used_folder`, before the block; or `path` cannot be written.
    """
    path = _folder_to_replace(path)
    temporary = _temporary_sibling(path, token)
    try:
        temporary.mkdir(parents=True, exist_ok=token is not None)
        yield temporary
        _sync_tree(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if not _is_about(error, temporary, path):
            raise
        raise explain_os_error(error, path, "write") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def joined_directory(path: Path | str, token: str) -> Generator[Path, None, None]:
    """Yields the folder that another process makes by `atomic_directory(path, token)`.

    Raises:
        UserError: it cannot be written.
    """
    path = Path(os.path.realpath(path))
    temporary = _temporary_sibling(path, token)
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        yield temporary
    except OSError as error:
        if not _is_about(error, temporary, path):
            raise
        raise explain_os_error(error, path, "write") from error


def refuse_used_folder(path: Path | str) -> None:
    """Passes when a folder can take the place of `path`: it is absent, or an empty folder.

    So nothing is ever written over, and no work is lost at its end.

    Raises:
        UserError: `path` is a file, or a folder with something in it, or one that cannot be
            replaced (a mount point, the current folder), or cannot be looked at.
    """
    _folder_to_replace(path)


def _folder_to_replace(path: Path | str) -> Path:
    """Where a folder at `path` is: behind a link if it is one, and absent or empty."""
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            if any(target.iterdir()):
                raise UserError(
                    f"cannot write {path}: the folder is not empty; choose another or remove it"
                )
            if os.path.ismount(target):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            if os.path.samefile(target, os.curdir):
                raise UserError(
                    f"cannot write {path or os.curdir}: it is the current folder, which a new one "
                    "would replace; choose a folder in it"
                )
        # What realpath leaves a link leads to itself.
        elif target.exists() or target.is_symlink():
            raise UserError(f"cannot write {path}: a file is in the way; choose another place")
    except OSError as error:
        raise explain_os_error(error, path, "write") from error
    return target


def refuse_unwritable(path: Path | str) -> None:
    """Passes when a file could be written at `path`, so that hours of work do not end in an error.

    Nothing is made. A disk that fills up in the meantime is not foreseen.

    Raises:
        UserError: `path` is a folder or device, lies under a file, or in a folder without
            permission.
    """
    path = _file_to_replace(path)
    nearest = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not nearest.is_dir():
        reason = errno.ENOTDIR
    elif not os.access(nearest, os.W_OK | os.X_OK):
        reason = errno.EACCES
    else:
        return
    raise explain_os_error(OSError(reason, os.strerror(reason)), path, "write")


def _file_to_replace(path: Path | str) -> Path:
    """Where a file at `path` is: behind a link if it is one, and nothing but a file if anything."""
    path = Path(path)
    # By os.path, which takes what cannot be looked at as absent: whoever writes there says why.
    target = Path(os.path.realpath(path)) if os.path.islink(path) else path
    if os.path.isdir(target):
        raise explain_os_error(OSError(errno.EISDIR, os.strerror(errno.EISDIR)), path, "write")
    if os.path.lexists(target) and not os.path.isfile(target):
        raise UserError(
            f"cannot write {path}: it is a device, a pipe or the like, which a file would replace; "
            "choose another name"
        )
    return target


def link_tree(source: Path | str, target: Path | str) -> None:
    """Put a folder's files into another one where they are not; weights take no room if possible.

    Raises:
        UserError: they cannot be written.
    """
    source, target = Path(source), Path(target)
    try:
        for file in sorted(source.rglob("*")):
            place = target / file.relative_to(source)
            if file.is_dir() or place.exists():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix != ".safetensors" or not _link(file, place):
                shutil.copyfile(file, place)
    except OSError as error:
        raise explain_os_error(error, target, "write files to") from error


def _link(file: Path, place: Path) -> bool:
    """A second name for the file's bytes, which last as long as either; False where none can be."""
    try:
        # The file itself: in the Hub's cache names are links to it, which go with the cache.
        os.link(file.resolve(), place)
    except OSError:  # another disk, or one that knows no such links
        return False
    return True


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as indented UTF-8 JSON, atomically.

    Raises:
        UserError: the file cannot be written.
        ValueError: a NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path, "w") as file:
        file.write(text + "\n")


def read_json(path: Path | str, *, may_be_non_finite: bool = False) -> Any:
    """The value in a JSON file.

    `may_be_non_finite` takes the NaN and Infinity that JSON does not have but that other programs
    write, Python's own json among them.

    Raises:
        UserError: the file is missing, unreadable, not JSON, nests too deeply or has a key twice;
            the text names it.
    """
    refuse = None if may_be_non_finite else _refuse_constant
    try:
        return json.loads(
            Path(path).read_bytes(), parse_constant=refuse, object_pairs_hook=each_key_once
        )
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except RepeatedKeyError as error:
        raise UserError(
            f"{path} has the key {str(error)!r:.60} twice in one object, and one value would be "
            "lost; remove one of them"
        ) from error
    except ValueError as error:  # also covers bytes that are not UTF-8
        raise UserError(f"{path} is not valid JSON ({error}); it may be cut or damaged") from error
    except RecursionError as error:
        raise UserError(f"{path} nests too deeply to be read; it may be damaged") from error


class RepeatedKeyError(ValueError):
    """A key of a JSON object that stands there twice, of which Python would keep the last."""


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its pairs, for the `object_pairs_hook` of `json.loads`.

    Raises:
        RepeatedKeyError: a key stands there twice; the text is the key.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise RepeatedKeyError(next(key for key, count in counts.items() if count > 1))
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def read_text(path: Path | str, *, doing: str = "read") -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        UserError: the file is missing, unreadable or not UTF-8; the text gives the line.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise explain_os_error(error, path, doing) from error
    try:
        # A byte order mark at the start is not part of the text.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: the text is not UTF-8; save the file as UTF-8") from error


def sha256_file(path: Path | str) -> str:
    """The SHA-256 of a file's bytes in hexadecimal.

    Raises:
        UserError: the file is missing or unreadable.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise explain_os_error(error, path, "read") from error


@contextmanager
def file_lock(path: Path | str, *, wait: bool = True) -> Generator[bool]:
    """Holds a lock among processes while the block runs; yields whether it was to be had.

    The kernel keeps it, so a killed process leaves none behind. `path` is an empty file that is
    made when missing, with its folder, and stays. Without `wait`, False comes at once when another
    process holds it.

    Raises:
        UserError: the file cannot be made, or its file system knows no locks.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise explain_os_error(error, path, "write") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_ours = True
        except BlockingIOError:
            is_ours = False
        except OSError as error:  # a file system without locks
            raise explain_os_error(error, path, "lock") from error
        yield is_ours
    finally:
        os.close(descriptor)


def _temporary_sibling(path: Path, token: str | None = None) -> Path:
    return path.with_name(f".{path.name}.tmp-{token or f'{os.getpid()}-{os.urandom(4).hex()}'}")


def _is_about(error: OSError, temporary: Path, path: Path) -> bool:
    """Whether a system error concerns our own files; another file's error passes through.

    A failed write or sync names no file at all: it can only be ours to explain.
    """
    if error.filename is None:
        return True
    named = Path(os.fsdecode(error.filename))
    return any(
        named == ours or ours in named.parents or named in ours.parents
        for ours in (temporary, path)
    )


def _sync_tree(folder: Path) -> None:
    """Sync all that a folder holds."""
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    # Linux alone has it.
    sync_file_system = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if len(files) > _MANY_FILES and sync_file_system is not None:
        with _descriptor(folder) as descriptor:
            if sync_file_system(descriptor):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), str(folder))
        return
    for file in files:
        with _descriptor(file) as descriptor:
            os.fsync(descriptor)
    for parent, _, _ in os.walk(folder):
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    with _descriptor(folder) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _descriptor(path: Path) -> Generator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
