"""What a backbone costs on a sample of the studies, as columns of their rows."""

from __future__ import annotations

from rectiflow.models.backbones import BackboneConfig
from rectiflow.models.flops import InputSize, forward_flops, num_parameters
from rectiflow.recipes.small import NUM_CLIP_TOKENS
from rectiflow.studies.study import Row

#: A 64-pixel picture of the embedded world with its prompt: as many tokens of CLIP as of T5.
SAMPLE = InputSize(height=8, width=8, num_text=2 * NUM_CLIP_TOKENS)


def size_row(config: BackboneConfig) -> Row:
    """Depth, width, parameters, and the FLOPs of one forward pass for one picture."""
    return {
        "depth": config.depth,
        "width": config.hidden_dim,
        "parameters": num_parameters(config),
        "forward_flops": forward_flops(config, SAMPLE),
    }
