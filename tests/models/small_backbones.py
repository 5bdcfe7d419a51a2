"""One small config of each kind of backbone, inputs for it, and weights that leave nothing zero."""

import torch

from rectiflow.models.backbones import BackboneConfig, build_backbone
from rectiflow.models.baselines.crossdit import CrossDiTConfig
from rectiflow.models.baselines.dit import DiTConfig
from rectiflow.models.baselines.uvit import UViTConfig
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.frame import Backbone
from rectiflow.models.mmdit import MMDiTConfig, MMDiTXConfig

CONTEXT_DIM, POOLED_DIM, NUM_TEXT, NUM_CLIP = 48, 24, 10, 4
SIZES = {
    "depth": 2,
    "context_dim": CONTEXT_DIM,
    "pooled_dim": POOLED_DIM,
    "position_side": 8,
    "base_side": 4,
}
CONFIGS: dict[str, BackboneConfig] = {
    "mmdit": MMDiTConfig(**SIZES),
    "mmdit3": MMDiTConfig(**SIZES, num_clip_tokens=NUM_CLIP),
    "mmdit-x": MMDiTXConfig(**SIZES, num_dual_blocks=1),
    "dit": DiTConfig(**SIZES),
    "crossdit": CrossDiTConfig(**SIZES),
    "uvit": UViTConfig(**SIZES),
    "uvit-two-levels": UViTConfig(**SIZES, patch_size=4, width=80, head_dim=40),
    "crossdit-narrow-heads": CrossDiTConfig(**SIZES, width=96, head_dim=48),
}


def randomised(model: torch.nn.Module) -> None:
    """Non-zero values everywhere, so that a swapped half or a missing gate shows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("ln_q.weight", "ln_k.weight")):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)


def random_backbone(config: BackboneConfig) -> Backbone:
    backbone = build_backbone(config).eval()
    randomised(backbone)
    return backbone


def inputs(num: int = 2, side: tuple[int, int] = (8, 12)):
    generator = torch.Generator().manual_seed(11)
    z_t = torch.randn(num, 16, *side, generator=generator)
    t = torch.rand(num, generator=generator)
    conditioning = Conditioning(
        context=torch.randn(num, NUM_TEXT, CONTEXT_DIM, generator=generator),
        pooled=torch.randn(num, POOLED_DIM, generator=generator),
    )
    return z_t, t, conditioning
