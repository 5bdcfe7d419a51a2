"""FLOPs by formula against PyTorch's counter."""

from dataclasses import replace

import pytest
import torch
from models.small_backbones import CONFIGS, CONTEXT_DIM, NUM_TEXT, POOLED_DIM
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rectiflow.base.errors import ConfigError
from rectiflow.models.backbones import BackboneConfig, build_backbone
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.flops import InputSize, forward_flops, num_parameters
from rectiflow.models.mmdit import MMDiTConfig


def counted(config: BackboneConfig, size: InputSize) -> int:
    model = build_backbone(config).eval()
    conditioning = Conditioning(
        context=torch.zeros(1, size.num_text, CONTEXT_DIM), pooled=torch.zeros(1, POOLED_DIM)
    )
    z_t = torch.zeros(1, config.in_channels, size.height, size.width)
    # The counter does not know the processor's fused attention; the plain one is two products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(z_t, torch.zeros(1), conditioning)
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("depth", [1, 3])
def test_the_formula_is_what_pytorch_counts(kind: str, depth: int) -> None:
    config = replace(CONFIGS[kind], depth=depth, use_qk_norm=depth == 3)
    for height, width in ((8, 8), (8, 16)):
        size = InputSize(height=height, width=width, num_text=NUM_TEXT)
        assert forward_flops(config, size) == pytest.approx(counted(config, size), rel=1e-3)


def test_latents_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="latents of 8×9 do not divide into patches of 2"):
        forward_flops(MMDiTConfig(depth=1), InputSize(height=8, width=9, num_text=1))


def test_parameters_are_counted_as_released() -> None:
    assert num_parameters(MMDiTConfig(depth=24)) == 2_028_328_000
