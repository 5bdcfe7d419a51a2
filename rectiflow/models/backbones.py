"""Every backbone by its config: the one place that says which there are and builds them.

On both walks training and generation build here, so that a recipe or `model.json` decides.
"""

from __future__ import annotations

from rectiflow.models.baselines.crossdit import CrossDiT, CrossDiTConfig
from rectiflow.models.baselines.dit import DiT, DiTConfig
from rectiflow.models.baselines.uvit import UViT, UViTConfig
from rectiflow.models.frame import Backbone
from rectiflow.models.mmdit import MMDiT, MMDiTConfig, MMDiTXConfig

BackboneConfig = MMDiTConfig | MMDiTXConfig | DiTConfig | CrossDiTConfig | UViTConfig


def build_backbone(config: BackboneConfig) -> Backbone:
    """The network of a config, with torch's own random weights; `initialize` draws them anew."""
    match config:
        case MMDiTConfig():
            return MMDiT(config)
        case DiTConfig():
            return DiT(config)
        case CrossDiTConfig():
            return CrossDiT(config)
        case UViTConfig():
            return UViT(config)
