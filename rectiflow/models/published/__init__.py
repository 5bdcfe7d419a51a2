"""Released SD3 checkpoints: recognised from their tensors, loaded, and saved in their layouts.

`checkpoint`, `folder` and `own` say what a file, a folder or a model of ours is, `loading` makes
networks of it, `saving` writes either layout, `inspection` describes it. `components` reads those
of diffusers' folders. `names` is the map between our tensor names and the layouts', `configs` and
`text_configs` read sizes off the tensors; `stored` and `header` are tensors as byte ranges of
safetensors files. `text_loading` stands apart, because it needs transformers.
"""

from rectiflow.models.published.checkpoint import (
    PART_TITLES,
    Checkpoint,
    Part,
    part_of,
    scheduler_of,
)
from rectiflow.models.published.configs import RELEASED
from rectiflow.models.published.folder import open_checkpoint
from rectiflow.models.published.inspection import describe_checkpoint
from rectiflow.models.published.loading import (
    build_autoencoder,
    build_mmdit,
    load_autoencoder,
    load_mmdit,
)
from rectiflow.models.published.saving import (
    convert,
    save_diffusers_folder,
    save_single_file,
)

__all__ = [
    "PART_TITLES",
    "RELEASED",
    "Checkpoint",
    "Part",
    "build_autoencoder",
    "build_mmdit",
    "convert",
    "describe_checkpoint",
    "load_autoencoder",
    "load_mmdit",
    "open_checkpoint",
    "part_of",
    "save_diffusers_folder",
    "save_single_file",
    "scheduler_of",
]
