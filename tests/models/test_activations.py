"""What a forward pass keeps by formula, against all memory that it does not give back."""

from dataclasses import replace

import pytest
import torch
from models.small_backbones import CONFIGS, NUM_TEXT, inputs, random_backbone
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rectiflow.base.errors import ConfigError
from rectiflow.models.activations import Arithmetic, activations_of, weight_copies
from rectiflow.models.flops import InputSize
from rectiflow.models.frame import Backbone
from rectiflow.models.lora import add_lora
from rectiflow.models.mmdit import MMDiTConfig, MMDiTXConfig
from rectiflow.training.recompute import recompute_blocks

SIZE = InputSize(height=8, width=12, num_text=NUM_TEXT)


class Allocations(TorchDispatchMode):
    """Notes every storage that an operation makes, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        made = operation(*arguments, **(keywords or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.num_bytes[StorageWeakRef(storage)] = storage.nbytes()
        return made

    def alive(self) -> int:
        return sum(size for storage, size in self.num_bytes.items() if not storage.expired())


def held_bytes(model: Backbone, num: int, dtype: torch.dtype) -> int:
    """Bytes that a forward pass has not given back, but the output's: the backward pass's."""
    with Allocations() as seen:
        given = inputs(num)
        own = [p.untyped_storage() for p in (*model.parameters(), *model.buffers())]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = model(*given)
        del given
    views = {StorageWeakRef(storage) for storage in (*own, output.untyped_storage())}
    for storage in views & seen.num_bytes.keys():
        del seen.num_bytes[storage]
    return seen.alive()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("use_qk_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formula_is_what_autograd_keeps(
    kind: str, use_qk_norm: bool, dtype: torch.dtype
) -> None:
    config = replace(CONFIGS[kind], use_qk_norm=use_qk_norm)
    found = activations_of(config, SIZE, Arithmetic.of(dtype, "cpu"))
    for recompute, expected in (
        ("none", found.around + found.blocks),
        ("products", found.around + found.inputs + found.products),
        ("blocks", found.around + found.inputs),
    ):
        model = random_backbone(config).train()
        recompute_blocks(model.blocks, recompute)
        two, three = held_bytes(model, 2, dtype), held_bytes(model, 3, dtype)
        assert three - two == expected
        # What does not grow with the batch: copies of the weights, less those of the first layers,
        # through which no gradient goes.
        if recompute == "none":
            copies = weight_copies(config, dtype)
            assert 0.8 * copies <= two - 2 * (three - two) <= copies


@pytest.mark.parametrize("config", [CONFIGS["mmdit"], CONFIGS["mmdit-x"]], ids=["mmdit", "mmdit-x"])
@pytest.mark.parametrize("use_qk_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formula_is_what_autograd_keeps_for_a_lora(
    config: MMDiTConfig, use_qk_norm: bool, dtype: torch.dtype
) -> None:
    """Of depth 3, where the first, a middle and the last block keep different things."""
    config = replace(config, use_qk_norm=use_qk_norm, depth=3)
    if isinstance(config, MMDiTXConfig):
        config = replace(config, num_dual_blocks=2)
    found = activations_of(config, SIZE, Arithmetic.of(dtype, "cpu"), lora_rank=5)
    for recompute, expected in (
        ("none", found.around + found.blocks),
        ("products", found.around + found.inputs + found.products),
        ("blocks", found.around + found.inputs),
    ):
        model = random_backbone(config).train()
        add_lora(model, 5, torch.Generator())
        recompute_blocks(model.blocks, recompute)
        assert held_bytes(model, 3, dtype) - held_bytes(model, 2, dtype) == expected


def test_on_cuda_attention_keeps_no_weights_of_pairs() -> None:
    config = MMDiTConfig(depth=2)

    def kept(side: int, device: str) -> int:
        size = InputSize(height=side, width=side, num_text=0)
        return activations_of(config, size, Arithmetic.of(torch.bfloat16, device)).blocks

    # Four times the tokens: four times the memory, or nearly sixteen where pairs rule.
    assert kept(512, "cuda") / kept(256, "cuda") < 4.01
    assert kept(512, "cpu") / kept(256, "cpu") > 10
    wide = Arithmetic.of(torch.float32, "cuda")
    assert (
        kept(64, "cuda")
        < activations_of(config, InputSize(height=64, width=64, num_text=0), wide).blocks
        < 2 * kept(64, "cuda")
    )


def test_latents_that_do_not_divide_are_refused() -> None:
    size = InputSize(height=8, width=9, num_text=1)
    with pytest.raises(ConfigError, match="latents of 8×9 do not divide into patches of 2"):
        activations_of(MMDiTConfig(depth=1), size, Arithmetic.of(torch.float32, "cpu"))
