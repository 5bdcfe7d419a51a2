"""Products in 8 bits: near the exact ones, the same in any batch, and honest about the change."""

from dataclasses import replace

import pytest
import torch
from models.small_backbones import CONFIGS, inputs, random_backbone
from torch import nn

from rectiflow.base.errors import ConfigError
from rectiflow.models.layers.eight_bits import Float8Linear, Int8Linear
from rectiflow.models.quantization import check_device, check_fp8_sizes, quantize

# Four standard deviations of a sum of 96 rounding errors over the largest that the product can be:
# steps of a 63rd of the largest of 96 normal values, and of a 16th of each value.
LAYERS = [(Int8Linear, 0.006), (Float8Linear, 0.02)]


def example(num: int = 40) -> tuple[nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    linear = nn.Linear(96, 64)
    for parameter in linear.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return linear, torch.randn(num, 96, generator=generator)


@pytest.mark.parametrize(("layer", "tolerance"), LAYERS)
@torch.no_grad()
def test_products_are_near_the_exact_ones(layer, tolerance) -> None:
    linear, x = example()
    # Rows and outputs of very different sizes: each has a scale of its own.
    x *= torch.logspace(-3, 3, len(x))[:, None]
    linear.weight *= torch.logspace(-2, 2, 64)[:, None]
    linear.bias.zero_()
    exact, found = linear(x), layer(linear)(x)
    assert found.dtype == torch.float32
    largest = x.norm(dim=1)[:, None] * linear.weight.norm(dim=1)
    assert ((found - exact).abs() / largest).max() < tolerance


@torch.no_grad()
def test_integers_are_summed_exactly() -> None:
    linear = nn.Linear(300, 5, bias=False)
    generator = torch.Generator().manual_seed(0)
    linear.weight.copy_(torch.randint(-127, 128, (5, 300), generator=generator))
    linear.weight[:, 0] = 127.0
    x = torch.randint(-63, 64, (7, 300), generator=generator).float()
    x[:, 0] = 63.0
    # The largest sums there can be, too.
    x[0], linear.weight[0] = 63.0, 127.0
    assert torch.equal(Int8Linear(linear)(x), x @ linear.weight.T)


@pytest.mark.parametrize(("layer", "tolerance"), LAYERS)
@torch.no_grad()
def test_a_row_depends_on_no_other(layer, tolerance) -> None:
    linear, x = example()
    map_ = layer(linear)
    together = map_(x.reshape(4, 10, 96)).reshape(40, 64)
    x[1:] *= 100.0
    assert torch.equal(map_(x)[0], together[0])
    assert torch.equal(map_(x[:1])[0], together[0])


@pytest.mark.parametrize(("layer", "tolerance"), LAYERS)
@torch.no_grad()
def test_zeros_give_the_bias(layer, tolerance) -> None:
    linear, x = example()
    linear.weight[3] = 0.0
    found = layer(linear)(torch.zeros_like(x))
    assert torch.equal(found, linear.bias.expand(len(x), -1))
    assert torch.allclose(layer(linear)(x)[:, 3], linear.bias[3])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_backbone_says_by_how_much_its_output_moves(name: str) -> None:
    model, call = random_backbone(CONFIGS[name]), inputs()
    with torch.no_grad():
        before = model(*call)
        quantized, moved = quantize(model, "int8")
        after = quantized(*call)
        assert torch.equal(model(*call), before)
    assert 0.0 < moved < 0.2
    found = ((after - before).norm() / before.norm()).item()
    # On other inputs it is of the same size.
    assert moved / 3 < found < 3 * moved
    held = {
        path.rpartition(".")[0].rpartition(".")[2]
        for path, module in quantized.blocks.named_modules()
        if isinstance(module, Int8Linear)
    }
    assert held >= {"attn", "mlp"}
    assert "adaLN_modulation" not in held


@pytest.mark.parametrize(("patch_size", "side"), [(2, 2), (4, 2), (3, 8), (16, 2)])
def test_its_probe_fits_any_backbone(patch_size: int, side: int) -> None:
    config = replace(CONFIGS["mmdit"], patch_size=patch_size, position_side=side, base_side=side)
    _, moved = quantize(random_backbone(config), "int8")
    assert 0.0 < moved < 0.2


def test_a_backbone_that_puts_out_zeros_does_not_move() -> None:
    backbone = random_backbone(CONFIGS["mmdit"])
    for parameter in backbone.final_layer.parameters():
        torch.nn.init.zeros_(parameter)
    _, moved = quantize(backbone, "int8")
    assert moved == 0.0


def test_the_other_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="fp8 is for device cuda, not cpu; choose int8 there"):
        quantize(random_backbone(CONFIGS["dit"]), "fp8")
    with pytest.raises(ConfigError, match="int8 is for device cpu, not cuda; choose fp8 there"):
        check_device("int8", torch.device("cuda"))


def test_sizes_that_fp8_does_not_multiply_are_refused() -> None:
    check_fp8_sizes([nn.Linear(64, 48)])
    for linear in (nn.Linear(200, 64), nn.Linear(64, 200)):
        with pytest.raises(ConfigError, match="multiples of 16, and one of this model's has 200"):
            check_fp8_sizes([linear])
