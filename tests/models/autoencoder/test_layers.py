"""What is computed more cheaply without gradients is what training computes."""

import pytest
import torch
from models.published.small_checkpoints import random_autoencoder
from torch.nn import functional as F

from rectiflow.models.autoencoder import AutoencoderConfig
from rectiflow.models.autoencoder.layers import ResidualBlock, Upsample, inference_layout

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 2), (9, 8)])
def test_upsampling_is_nearest_and_a_convolution(
    size: tuple[int, int], layout: torch.memory_format
) -> None:
    upsample = Upsample(6).double()
    x = torch.randn(2, 6, *size).double().contiguous(memory_format=layout)
    nearest = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(nearest, upsample.conv.weight, upsample.conv.bias, padding=1)
    assert torch.equal(upsample(x), upsample.conv(F.interpolate(x, scale_factor=2.0)))
    with torch.no_grad():
        assert relative_error(upsample(x), expected) < 1e-14
        upsample, x = upsample.float(), x.float()
        assert relative_error(upsample(x), expected.float()) < 1e-6


def test_upsampling_follows_its_weights() -> None:
    upsample, x = Upsample(4), torch.randn(1, 4, 3, 3)
    with torch.inference_mode():
        before = upsample(x)
        upsample.conv.weight.mul_(2)
        upsample.conv.bias.mul_(2)
        assert torch.equal(upsample(x), 2 * before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_in_16_bit_are_rounded_once(dtype: torch.dtype) -> None:
    upsample = Upsample(4).to(dtype)
    exact = Upsample(4)
    exact.load_state_dict(upsample.state_dict())
    with torch.no_grad():
        assert upsample.summed_kernel().dtype == dtype
        assert torch.equal(upsample.summed_kernel(), exact.summed_kernel().to(dtype))


@pytest.mark.parametrize("num_out", [8, 12])
def test_blocks_leave_their_input_and_equal_training(num_out: int) -> None:
    block, x = ResidualBlock(8, num_out, 4).double(), torch.randn(2, 8, 5, 6).double()
    before = x.clone()
    trained = block(x)
    with torch.no_grad():
        assert relative_error(block(x), trained) < 1e-14
    assert torch.equal(x, before)


def test_inference_equals_training_and_gradients_flow() -> None:
    config = AutoencoderConfig(base_channels=8, channel_multipliers=(1, 2), num_norm_groups=4)
    autoencoder = random_autoencoder(config).double()
    z = torch.randn(2, 16, 5, 4).double()
    images = autoencoder.decode(z)
    encoded = autoencoder.encode(images)
    with torch.no_grad():
        assert relative_error(autoencoder.decode(z), images) < 1e-12
        again = autoencoder.encode(images)
        assert relative_error(again.mean, encoded.mean) < 1e-12
        assert relative_error(again.logvar, encoded.logvar) < 1e-12
    encoded.mean.square().sum().backward()
    assert all(p.grad is not None for p in autoencoder.decoder.parameters())


def test_layout_is_chosen_without_gradients_only() -> None:
    x = torch.randn(2, 4, 3, 5)
    assert inference_layout(x) is x
    with torch.no_grad():
        laid = inference_layout(x)
        assert laid.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(laid, x)
        # On an accelerator in 16 bit only.
        on_device = torch.empty(2, 4, 3, 5, device="meta")
        assert inference_layout(on_device) is on_device
        halved = inference_layout(on_device.bfloat16())
        assert halved.is_contiguous(memory_format=torch.channels_last)


def test_results_are_contiguous() -> None:
    # Stores and picture files are written from them.
    config = AutoencoderConfig(base_channels=8, channel_multipliers=(1, 2), num_norm_groups=4)
    autoencoder = random_autoencoder(config)
    with torch.no_grad():
        images = autoencoder.decode(torch.randn(2, 16, 3, 4))
        encoded = autoencoder.encode(images)
    assert all(t.is_contiguous() for t in (images, encoded.mean, encoded.logvar))
