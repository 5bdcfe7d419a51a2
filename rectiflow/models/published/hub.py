"""Released models by their name on the Hugging Face Hub.

Its own module, as whatever reads weights by path may be given such a name.
"""

from __future__ import annotations

import re
from pathlib import Path

from rectiflow.base.errors import UserError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
#: What a model's folder on the Hub needs to hold.
_HUB_FILES = ("*.json", "transformer/*", "vae/*", "text_encoder*/*", "tokenizer*/*")


def find_released(name_or_path: Path | str) -> Path | None:
    """The file or folder of that path or name, downloaded if need be; None if there is none.

    Raises:
        UserError: as `fetch_from_hub`.
    """
    path = Path(name_or_path)
    return path if path.exists() else fetch_from_hub(str(name_or_path))


def fetch_from_hub(name: str) -> Path | None:
    """The folder of a model that the Hugging Face Hub has, downloaded if it was not; or None.

    None where the name cannot be one of the Hub's.

    Raises:
        UserError: it is not to be had; the text says why.
    """
    if not _HUB_NAME.fullmatch(name):
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # whatever network, Hub and disk come up with
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"there is no file or folder {name}, and the Hugging Face Hub does not give it: "
            f"{reason} Give a path, or sign in where a licence must be accepted first"
        ) from error
