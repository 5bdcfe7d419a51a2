"""Released models by their name on the Hugging Face Hub.

Its own module, as whatever reads weights by path may be given such a name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rectiflow.base.errors import UserError
from rectiflow.models.model_folder import PIPELINE_FILE
from rectiflow.models.published.checkpoint import SCHEDULER
from rectiflow.models.published.components import COMPONENTS
from rectiflow.models.published.header import SUFFIX
from rectiflow.models.text.conditioner import FOLDERS

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = tuple(folder for folder, _ in COMPONENTS.values())
_READ = (*_WEIGHTS, *(tokenizer for _, tokenizer in FOLDERS.values()), SCHEDULER)
#: Folders that hold weights often hold them a second time in 16 bits.
_VARIANTS = ("*.fp16.*", "*.fp16-*")


def find_released(name_or_path: Path | str) -> Path | None:
    """The file or folder of that path or name, downloaded if need be; None if there is none.

    Raises:
        UserError: as `fetch_from_hub`.
    """
    path = Path(name_or_path)
    return path if path.exists() else fetch_from_hub(str(name_or_path))


def fetch_from_hub(name: str) -> Path | None:
    """The folder of a model that the Hugging Face Hub has, downloaded if it was not; or None.

    Only a pipeline's own folders are fetched: single files beside them hold the same once more.
    None where the name cannot be one of the Hub's.

    Raises:
        UserError: it is not to be had, or is no pipeline; the text says why.
    """
    if not _HUB_NAME.fullmatch(name):
        return None
    place = _download(name, but=_VARIANTS)
    if any(_lacks_weights(place / folder) for folder in _WEIGHTS):
        place = _download(name, but=())
    if not (place / PIPELINE_FILE).is_file():
        raise UserError(
            f"{name} on the Hugging Face Hub is no folder of a diffusers pipeline, which has a "
            f"{PIPELINE_FILE}; give one that is (its name often ends in -diffusers), or download "
            "its file of weights and give that"
        )
    return place


def _download(name: str, *, but: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [PIPELINE_FILE, *(f"{folder}/*" for folder in _READ)]
    others = ["*.bin", "*.msgpack", "*.onnx*", *but]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=others))
    except Exception as error:  # whatever network, Hub and disk come up with
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"there is no file or folder {name}, and the Hugging Face Hub does not give it: "
            f"{reason} Give a path, or sign in where a licence must be accepted first"
        ) from error


def _lacks_weights(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.glob(f"*{SUFFIX}"))
