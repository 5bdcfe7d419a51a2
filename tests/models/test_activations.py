"""What a forward pass keeps by formula, against all that autograd saves, storage by storage."""

from dataclasses import replace

import pytest
import torch
from models.small_backbones import CONFIGS, NUM_TEXT, inputs, random_backbone

from rectiflow.base.errors import ConfigError
from rectiflow.models.activations import Arithmetic, kept_bytes, weight_copies
from rectiflow.models.flops import InputSize
from rectiflow.models.frame import Backbone
from rectiflow.models.mmdit import MMDiTConfig

SIZE = InputSize(height=8, width=12, num_text=NUM_TEXT)


def saved_bytes(model: Backbone, num: int, dtype: torch.dtype) -> int:
    """Bytes of all storages that the backward pass will read, less those of the weights."""
    own = (*model.parameters(), *model.buffers())
    seen = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept: list[torch.Tensor] = []  # alive, so that no storage's place is used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in seen:
            seen.add(tensor.untyped_storage().data_ptr())
            kept.append(tensor)
        return tensor

    z_t, t, conditioning = inputs(num)
    is_narrow = dtype == torch.bfloat16
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=is_narrow),
    ):
        model(z_t, t, conditioning)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("use_qk_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formula_is_what_autograd_saves(
    kind: str, use_qk_norm: bool, dtype: torch.dtype
) -> None:
    config = replace(CONFIGS[kind], use_qk_norm=use_qk_norm)
    model = random_backbone(config).train()
    two, three = saved_bytes(model, 2, dtype), saved_bytes(model, 3, dtype)
    assert kept_bytes(config, SIZE, Arithmetic.of(dtype, "cpu")) == three - two
    # What does not grow with the batch: copies of the weights, less those of the first layers,
    # through which no gradient goes.
    copies = weight_copies(config, dtype)
    assert 0.8 * copies <= two - 2 * (three - two) <= copies


def test_on_cuda_attention_keeps_no_weights_of_pairs() -> None:
    config = MMDiTConfig(depth=2)

    def kept(side: int, device: str) -> int:
        size = InputSize(height=side, width=side, num_text=0)
        return kept_bytes(config, size, Arithmetic.of(torch.bfloat16, device))

    # Four times the tokens: four times the memory, or nearly sixteen where pairs rule.
    assert kept(512, "cuda") / kept(256, "cuda") < 4.01
    assert kept(512, "cpu") / kept(256, "cpu") > 10
    wide = Arithmetic.of(torch.float32, "cuda")
    assert (
        kept(64, "cuda")
        < kept_bytes(config, InputSize(height=64, width=64, num_text=0), wide)
        < 2 * kept(64, "cuda")
    )


def test_latents_that_do_not_divide_are_refused() -> None:
    size = InputSize(height=8, width=9, num_text=1)
    with pytest.raises(ConfigError, match="latents of 8×9 do not divide into patches of 2"):
        kept_bytes(MMDiTConfig(depth=1), size, Arithmetic.of(torch.float32, "cpu"))
