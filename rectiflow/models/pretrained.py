"""transformers models from and to local folders: complete, quiet, and without any network.

Used by the text encoders and the image tower. transformers reports missing tensors as a log line
and fills them with random numbers; here that is an error.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from rectiflow.base.errors import CheckpointError, UserError


def load_pretrained(model_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A transformers model from a folder, complete and quiet.

    Raises:
        UserError: the folder holds no config.
        CheckpointError: weights are damaged, or lack tensors of the model.
    """
    require_file(folder / "config.json")
    try:
        with quiet_transformers():
            model, report = model_class.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                # Never a pickle, which runs code.
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"cannot load {model_class.__name__} from {folder}: {error}; fetch or make the files "
            "again"
        ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise CheckpointError(
            f"the weights in {folder} lack tensors of {model_class.__name__}, among them "
            f"{missing}; they belong to another model"
        )
    return model


def require_file(path: Path) -> None:
    """Pass when the file is there.

    Raises:
        UserError: it is not.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing; the folder {path.parent} should be one that transformers saved"
        )


#: While transformers loads it has the process's default type, its own log and some of torch's
#: functions replaced, and puts back what it found: two loads at once would leave them replaced.
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def quiet_transformers() -> Generator[None]:
    """Without transformers' progress bars and load reports: what matters is raised.

    One thread at a time is within; all that loads models by transformers belongs there.
    """
    with _ONE_AT_A_TIME, _quietly():
        yield


@contextmanager
def _quietly() -> Generator[None]:
    had_bar = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bar:
            transformers_logging.enable_progress_bar()
