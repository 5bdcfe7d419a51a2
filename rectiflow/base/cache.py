"""What may be thrown away at any time and costs only time to make again: hashes, prompts' states.

It lies in `$RECTIFLOW_CACHE`, else `$XDG_CACHE_HOME/rectiflow`, else `~/.cache/rectiflow`. A cache
that cannot be read or written is done without.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from rectiflow.base.errors import UserError
from rectiflow.base.files import read_json, sha256_file, write_json

_HASHES_FILE = "hashes.json"


def cache_folder() -> Path:
    """Where the cache lies; it need not exist, nor be a place that can be written."""
    if own := os.environ.get("RECTIFLOW_CACHE"):
        return Path(own)
    if place := os.environ.get("XDG_CACHE_HOME"):
        return Path(place) / "rectiflow"
    try:
        return Path.home() / ".cache" / "rectiflow"
    except RuntimeError:  # nobody knows a home: where nothing is found, and nothing can be made
        return Path(os.devnull) / "rectiflow"


def cached_sha256(path: Path | str) -> str:
    """The SHA-256 of a file as `sha256_file`, remembered until the file changes size or time.

    Raises:
        UserError: the file is missing or unreadable.
    """
    path = Path(path).absolute()
    known = cache_folder() / _HASHES_FILE
    try:
        status = path.stat()
    except OSError:
        return sha256_file(path)  # which says what is wrong
    state = [status.st_size, status.st_mtime_ns, status.st_ino]
    hashes = _read(known)
    found: Any = hashes.get(str(path))
    if isinstance(found, dict) and found.get("state") == state and "sha256" in found:
        return found["sha256"]
    sha256 = sha256_file(path)
    # UnicodeError: a path that is not UTF-8 has no place in JSON.
    with suppress(UserError, UnicodeError):
        # Read again: another process may have added its own while this one was hashing.
        write_json(known, _read(known) | {str(path): {"state": state, "sha256": sha256}})
    return sha256


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}
