"""Our tensor names and those of the two released layouts, one line of a table for each tensor.

"sai" is the layout of the single files, where an MM-DiT's names are ours, "diffusers" that of the
folders. A map follows from the tensors' names alone, so it is made for a model on the meta device.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from rectiflow.models.published.stored import StoredTensor

Layout = Literal["sai", "diffusers"]


class Change(Enum):
    """What diffusers does to a tensor of ours besides giving it another name."""

    NONE = "the same values"
    CUT = "cut along the first dimension into tensors of their own"
    SWAPPED = "shift and scale the other way round"
    MATRIX = "a 1×1 convolution as a matrix"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of ours and its names in the layouts."""

    ours: str
    sai: str
    diffusers: tuple[str, ...]
    change: Change = Change.NONE

    def names(self, layout: Layout) -> tuple[str, ...]:
        """The tensors that hold it in a layout."""
        return (self.sai,) if layout == "sai" else self.diffusers

    def to_ours(self, layout: Layout, tensors: Mapping[str, StoredTensor]) -> StoredTensor:
        """Our tensor out of a layout's; KeyError where one is missing."""
        parts = [tensors[name] for name in self.names(layout)]
        if layout == "sai" or self.change is Change.NONE:
            return parts[0]
        if self.change is Change.CUT:
            return StoredTensor.join(parts)
        if self.change is Change.SWAPPED:
            return StoredTensor.join(parts[0].chunk(2)[::-1])
        return parts[0].reshape(*parts[0].shape, 1, 1)

    def from_ours(self, layout: Layout, tensor: StoredTensor) -> dict[str, StoredTensor]:
        """A layout's tensors out of ours."""
        names = self.names(layout)
        if layout == "sai" or self.change is Change.NONE:
            parts = [tensor]
        elif self.change is Change.CUT:
            parts = tensor.chunk(len(names))
        elif self.change is Change.SWAPPED:
            parts = [StoredTensor.join(tensor.chunk(2)[::-1])]
        else:
            parts = [tensor.reshape(*tensor.shape[:2])]
        return dict(zip(names, parts, strict=True))


#: Ours → diffusers', by the longest piece of a name; "N" stands for a block's number.
_MMDIT_NAMES = {
    "pos_embed": "pos_embed.pos_embed",
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "joint_blocks.N.x_block.attn.proj": "transformer_blocks.N.attn.to_out.0",
    "joint_blocks.N.x_block.attn.ln_q": "transformer_blocks.N.attn.norm_q",
    "joint_blocks.N.x_block.attn.ln_k": "transformer_blocks.N.attn.norm_k",
    "joint_blocks.N.x_block.attn2.proj": "transformer_blocks.N.attn2.to_out.0",
    "joint_blocks.N.x_block.attn2.ln_q": "transformer_blocks.N.attn2.norm_q",
    "joint_blocks.N.x_block.attn2.ln_k": "transformer_blocks.N.attn2.norm_k",
    "joint_blocks.N.x_block.mlp.fc1": "transformer_blocks.N.ff.net.0.proj",
    "joint_blocks.N.x_block.mlp.fc2": "transformer_blocks.N.ff.net.2",
    "joint_blocks.N.x_block.adaLN_modulation.1": "transformer_blocks.N.norm1.linear",
    "joint_blocks.N.context_block.attn.proj": "transformer_blocks.N.attn.to_add_out",
    "joint_blocks.N.context_block.attn.ln_q": "transformer_blocks.N.attn.norm_added_q",
    "joint_blocks.N.context_block.attn.ln_k": "transformer_blocks.N.attn.norm_added_k",
    "joint_blocks.N.context_block.mlp.fc1": "transformer_blocks.N.ff_context.net.0.proj",
    "joint_blocks.N.context_block.mlp.fc2": "transformer_blocks.N.ff_context.net.2",
    "joint_blocks.N.context_block.adaLN_modulation.1": "transformer_blocks.N.norm1_context.linear",
}
_MMDIT_CUTS = {
    "joint_blocks.N.x_block.attn.qkv": "transformer_blocks.N.attn.{to_q,to_k,to_v}",
    "joint_blocks.N.x_block.attn2.qkv": "transformer_blocks.N.attn2.{to_q,to_k,to_v}",
    "joint_blocks.N.context_block.attn.qkv": (
        "transformer_blocks.N.attn.{add_q_proj,add_k_proj,add_v_proj}"
    ),
}


def mmdit_entries(names: Iterable[str], *, depth: int) -> tuple[Entry, ...]:
    """The map of an MM-DiT with one set of weights for all text.

    Args:
        names: of its tensors, "pos_embed" among them.
        depth: its number of blocks; the last one's modulation of the text is a layer's last.
    """
    # diffusers has (scale, shift) where nothing but a norm is modulated, ours is (shift, scale).
    swapped = ("final_layer.ada", f"joint_blocks.{depth - 1}.context_block.ada")
    entries: list[Entry] = []
    for name in names:
        stem, number, kind = _split(name)
        if stem in _MMDIT_CUTS:
            before, pieces = _MMDIT_CUTS[stem].rstrip("}").split("{")
            before = before.replace(".N.", f".{number}.")
            theirs = tuple(f"{before}{piece}{kind}" for piece in pieces.split(","))
            change = Change.CUT
        else:
            theirs = (_MMDIT_NAMES[stem].replace(".N.", f".{number}.") + kind,)
            change = Change.SWAPPED if name.startswith(swapped) else Change.NONE
        entries.append(Entry(ours=name, sai=name, diffusers=theirs, change=change))
    return tuple(entries)


def _split(name: str) -> tuple[str, str, str]:
    """A name as what the table knows, its block's number, and ".weight", ".bias" or nothing."""
    stem, kind = re.fullmatch(r"(.*?)(\.weight|\.bias|)", name).groups()  # pyright: ignore[reportOptionalMemberAccess]
    number = re.search(r"\.(\d+)\.", stem) if stem.startswith("joint_blocks.") else None
    if number is None:
        return stem, "", kind
    return stem.replace(number[0], ".N.", 1), number[1], kind


def autoencoder_entries(names: Iterable[str], *, num_levels: int) -> tuple[Entry, ...]:
    """The map of an autoencoder with `num_levels` resolutions.

    diffusers counts the decoder's levels from the latents up, the others from the pixels down.
    """
    entries: list[Entry] = []
    for name in names:
        sai = re.sub(r"(down\.\d+)\.resample", r"\1.downsample", name)
        sai = re.sub(r"(up\.\d+)\.resample", r"\1.upsample", sai)
        theirs = re.sub(r"encoder\.down\.(\d+)\.block", r"encoder.down_blocks.\1.resnets", sai)
        theirs = re.sub(
            r"encoder\.down\.(\d+)\.downsample", r"encoder.down_blocks.\1.downsamplers.0", theirs
        )
        if level := re.match(r"decoder\.up\.(\d+)\.", theirs):
            theirs = theirs.replace(
                level[0], f"decoder.up_blocks.{num_levels - 1 - int(level[1])}.", 1
            )
            theirs = theirs.replace(".block.", ".resnets.").replace(".upsample.", ".upsamplers.0.")
        theirs = theirs.replace("nin_shortcut", "conv_shortcut")
        theirs = theirs.replace("coder.norm_out", "coder.conv_norm_out")
        for ours, block in (("block_1", "0"), ("block_2", "1")):
            theirs = theirs.replace(f"mid.{ours}.", f"mid_block.resnets.{block}.")
        theirs = theirs.replace("mid.attn_1.norm.", "mid_block.attentions.0.group_norm.")
        theirs = theirs.replace("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0.")
        theirs = re.sub(r"mid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1.", theirs)
        is_matrix = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name) is not None
        change = Change.MATRIX if is_matrix else Change.NONE
        entries.append(Entry(ours=name, sai=sai, diffusers=(theirs,), change=change))
    return tuple(entries)


def count_numbered(names: Iterable[str], stem: str) -> int:
    """How many modules "stem.0", "stem.1", … the names belong to.

    Raises:
        KeyError: the first that is missing.
    """
    pattern = re.compile(rf"{re.escape(stem)}\.(\d+)\.")
    numbers = {int(found[1]) for name in names if (found := pattern.match(name))}
    count = len(numbers)
    if not numbers or max(numbers) != count - 1:
        missing = next(i for i in range(count + 1) if i not in numbers)
        raise KeyError(f"{stem}.{missing}")
    return count
