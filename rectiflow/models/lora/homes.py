"""Where a module of a LoRA file belongs: every tool's spelling of its name → rows of a matrix.

The map between our names and the layouts' is `published.names`; here are the prefixes that tools
put before them, and names that have "_" for every ".".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from jaxtyping import Float
from torch import Tensor, nn

from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.published.checkpoint import PREFIXES
from rectiflow.models.published.configs import entries_of, layout_shapes
from rectiflow.models.published.names import Entry, Layout
from rectiflow.models.published.stored import StoredTensor
from rectiflow.models.published.text_configs import (
    PROJECTION,
    RELEASED_TEXT,
    TextSize,
    infer_text_size,
)

WEIGHT = ".weight"
#: What diffusers and PEFT write before a module's name of each part; the first is for writing.
DIFFUSERS_PREFIXES = {
    "mmdit": "transformer.",
    "clip_l": "text_encoder.",
    "clip_g": "text_encoder_2.",
    "t5": "text_encoder_3.",
}
#: What kohya's scripts write before a name with underscores.
KOHYA_PREFIXES = {
    "mmdit": "lora_unet_",
    "clip_l": "lora_te1_",
    "clip_g": "lora_te2_",
    "t5": "lora_te3_",
}
_DOTTED = (
    *((prefix, part) for part, prefix in DIFFUSERS_PREFIXES.items()),
    *((prefix, part) for part, prefix in PREFIXES.items()),
    ("diffusion_model.", "mmdit"),
    ("base_model.model.", "mmdit"),
    ("base_model.model.transformer.", "mmdit"),
    ("base_model.model.diffusion_model.", "mmdit"),
    ("", "mmdit"),
)
_UNDERSCORED = (
    *((prefix, part) for part, prefix in KOHYA_PREFIXES.items()),
    ("lora_transformer_", "mmdit"),
    ("lycoris_", "mmdit"),
)
#: The linear maps of text encoders among their two-dimensional weights; the others are tables.
_TEXT_LINEAR = re.compile(
    r"(_proj|\.fc[12]|text_projection|SelfAttention\.[qkvo]|DenseReluDense\.w\w+)\.weight$"
)


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A weight that a LoRA can change: its names, and its shape with us."""

    entry: Entry
    shape: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        return self.shape[0]

    @property
    def num_columns(self) -> int:
        return math.prod(self.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Home:
    """A module's place: the `index`-th of the tensors that a layout makes of a matrix of ours."""

    part: str
    matrix: Matrix
    layout: Layout
    index: int

    @property
    def name(self) -> str:
        """Our parameter."""
        return self.matrix.entry.ours

    @property
    def shape(self) -> tuple[int, int]:
        """Rows that it has of the matrix, and columns."""
        num_parts = len(self.matrix.entry.names(self.layout))
        return self.matrix.num_rows // num_parts, self.matrix.num_columns

    @property
    def first_row(self) -> int:
        return self.index * self.shape[0]

    def up_to_ours(self, up: Float[Tensor, "rows rank"]) -> Float[Tensor, "rows rank"]:
        """The rows in our order."""
        entry = self.matrix.entry
        name, *others = entry.names(self.layout)
        if others:
            return up
        return entry.to_ours(self.layout, {name: StoredTensor.of(up)}).load()


@cache
def mmdit_matrices(config: MMDiTConfig) -> dict[str, Matrix]:
    """By our names the weights of linear maps, and of the patch embedder's convolution.

    Raises:
        CheckpointError: an MM-DiT with three sets of weights, which has no released layout.
    """
    shapes = layout_shapes(config, "sai")
    return {
        entry.ours: Matrix(entry=entry, shape=shapes[entry.sai])
        for entry in entries_of(config)
        if entry.ours.endswith(WEIGHT) and len(shapes[entry.sai]) > 1
    }


def text_matrices(size: TextSize) -> dict[str, Matrix]:
    """By transformers' names the weights of a text encoder's linear maps."""
    return {
        name: Matrix(entry=Entry(ours=name, sai=name, diffusers=(name,)), shape=shape)
        for name, shape in size.wanted({PROJECTION: None}).items()
        if _TEXT_LINEAR.search(name)
    }


def text_sizes(encoders: nn.ModuleDict) -> dict[str, TextSize]:
    """The sizes of a conditioner's `encoders`; of those that it lacks, SD3's."""
    found: dict[str, TextSize] = {}
    for name, encoder in encoders.items():
        shapes = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
        given = encoder.config.to_dict()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        found[name] = infer_text_size(name, shapes, given)
    return RELEASED_TEXT | found


@dataclass(frozen=True, kw_only=True)
class Homes:
    """All places in a model, by (part, module's name) with dots and with underscores."""

    dotted: Mapping[tuple[str, str], Home]
    underscored: Mapping[tuple[str, str], Home]

    @staticmethod
    def of(config: MMDiTConfig, text: Mapping[str, TextSize]) -> Homes:
        """The places in an MM-DiT and text encoders of these sizes."""
        matrices = {"mmdit": mmdit_matrices(config)}
        matrices |= {part: text_matrices(size) for part, size in text.items()}
        layouts: tuple[Layout, ...] = ("sai", "diffusers")
        dotted: dict[tuple[str, str], Home] = {}
        for part, of_part in matrices.items():
            for matrix in of_part.values():
                # A text encoder has transformers' names in both.
                for layout in layouts if part == "mmdit" else layouts[:1]:
                    for i, name in enumerate(matrix.entry.names(layout)):
                        home = Home(part=part, matrix=matrix, layout=layout, index=i)
                        dotted.setdefault((part, name.removesuffix(WEIGHT)), home)
                        # As transformers' CLIPTextModel has it since 5.6.
                        flat = name.removesuffix(WEIGHT).removeprefix("text_model.")
                        dotted.setdefault((part, flat), home)
        underscored = {(part, name.replace(".", "_")): h for (part, name), h in dotted.items()}
        return Homes(dotted=dotted, underscored=underscored)

    def find(self, module: str) -> Home | None:
        """The place of a module by a file's name for it, or None."""
        for prefixes, homes in ((_DOTTED, self.dotted), (_UNDERSCORED, self.underscored)):
            for prefix, part in prefixes:
                if module.startswith(prefix):
                    home = homes.get((part, module.removeprefix(prefix)))
                    if home is not None:
                        return home
        return None
