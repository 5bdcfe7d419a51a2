"""One small network of each released kind, and files of it as the public libraries write them."""

from pathlib import Path

import torch
from models.small_backbones import CONTEXT_DIM, POOLED_DIM, randomised
from safetensors.torch import save_file

from rectiflow.models.autoencoder import Autoencoder, AutoencoderConfig
from rectiflow.models.mmdit import MMDiT, MMDiTConfig, MMDiTXConfig

SIZES = {
    "depth": 3,
    "context_dim": CONTEXT_DIM,
    "pooled_dim": POOLED_DIM,
    "position_side": 8,
    "base_side": 8,
}
#: As SD3-medium, SD3.5-medium and SD3.5-large are built.
SMALL: dict[str, MMDiTConfig] = {
    "sd3-medium": MMDiTConfig(**SIZES),
    "sd3.5-medium": MMDiTXConfig(**SIZES, use_qk_norm=True, num_dual_blocks=2),
    "sd3.5-large": MMDiTConfig(**SIZES, use_qk_norm=True),
}
SMALL_AUTOENCODER = AutoencoderConfig(base_channels=32, channel_multipliers=(1, 2, 2, 2))


def random_mmdit(config: MMDiTConfig) -> MMDiT:
    """Nothing zero, and positions that no closed form gives, so that every swap shows."""
    model = MMDiT(config).eval()
    randomised(model)
    generator = torch.Generator().manual_seed(7)
    model.pos_embed = torch.randn(model.pos_embed.shape, generator=generator)
    return model


def random_autoencoder(config: AutoencoderConfig = SMALL_AUTOENCODER) -> Autoencoder:
    model = Autoencoder(config).eval()
    randomised(model)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def mmdit_state(model: MMDiT) -> dict[str, torch.Tensor]:
    """What a single file holds of it, without the prefix."""
    return {"pos_embed": model.pos_embed.flatten(0, 1)[None]} | model.state_dict()


def autoencoder_state(model: Autoencoder) -> dict[str, torch.Tensor]:
    def released(name: str) -> str:
        sample = "downsample" if ".down." in name else "upsample"
        return name.replace("resample", sample)

    return {released(name): value for name, value in model.state_dict().items()}


def write_single_file(
    path: Path,
    mmdit: MMDiT | None = None,
    autoencoder: Autoencoder | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """As Stability AI lays out its single files, by the safetensors library."""
    tensors: dict[str, torch.Tensor] = {}
    if mmdit is not None:
        tensors |= {f"model.diffusion_model.{k}": v for k, v in mmdit_state(mmdit).items()}
    if autoencoder is not None:
        tensors |= {f"first_stage_model.{k}": v for k, v in autoencoder_state(autoencoder).items()}
    save_file({k: v.detach().to(dtype).contiguous() for k, v in tensors.items()}, path)
    return path


def diffusers_transformer(config: MMDiTConfig):
    """diffusers' transformer of the same sizes, with random weights and positions."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(3)
    model = SD3Transformer2DModel(
        sample_size=config.base_side * config.patch_size,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        num_layers=config.depth,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.hidden_dim // config.head_dim,
        joint_attention_dim=config.context_dim,
        caption_projection_dim=config.hidden_dim,
        pooled_projection_dim=config.pooled_dim,
        out_channels=config.latent_channels,
        pos_embed_max_size=config.position_side,
        dual_attention_layers=tuple(range(config.num_second_attentions)),
        qk_norm="rms_norm" if config.use_qk_norm else None,
    ).eval()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if ".norm_" in name and "linear" not in name:
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
        model.pos_embed.pos_embed.copy_(
            torch.randn(model.pos_embed.pos_embed.shape, generator=generator)
        )
    return model


def diffusers_output(model, z_t, t, conditioning) -> torch.Tensor:
    with torch.no_grad():
        return model(
            hidden_states=z_t,
            encoder_hidden_states=conditioning.context,
            pooled_projections=conditioning.pooled,
            timestep=1000 * t,
            return_dict=False,
        )[0]
