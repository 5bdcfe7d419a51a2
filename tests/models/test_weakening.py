"""A backbone is disturbed as long as asked for, in the blocks asked for, and not otherwise."""

from dataclasses import replace

import pytest
import torch
from models.small_backbones import CONFIGS, NUM_TEXT, inputs, random_backbone

from rectiflow.base.errors import ConfigError
from rectiflow.models.layers.attention import attention, mask_attention
from rectiflow.models.weakening import image_tokens_alone, perturb_attention, skip_blocks

KINDS = ("mmdit", "mmdit3", "dit", "crossdit", "uvit")
by_kind = pytest.mark.parametrize("kind", KINDS)


@by_kind
@torch.no_grad()
def test_disturbing_lasts_as_long_as_asked_for(kind: str) -> None:
    model, call = random_backbone(CONFIGS[kind]), inputs()
    before = model(*call)
    for disturb in (skip_blocks, perturb_attention):
        found = []
        for layers in ((0,), (1,), (0, 1)):
            with disturb(model, layers):
                found.append(model(*call))
        for i, output in enumerate(found):
            assert torch.isfinite(output).all()
            for other in (before, *found[:i]):
                assert (output - other).abs().max() > 1e-3
        with pytest.raises(KeyError), disturb(model, (1,)):
            raise KeyError
        assert torch.equal(model(*call), before)


@by_kind
@torch.no_grad()
def test_a_model_without_its_last_block_is_the_shorter_model(kind: str) -> None:
    model, call = random_backbone(CONFIGS[kind]), inputs()
    shorter = random_backbone(replace(CONFIGS[kind], depth=1, width=model.config.hidden_dim))
    weights = model.state_dict()
    last = random_backbone(CONFIGS[kind])
    # The one block that is left is the last of its model, which in MM-DiT and DiT drops the text.
    renamed = {
        name.replace("blocks.1.", "blocks.0."): w
        for name, w in weights.items()
        if "blocks.0." not in name
    }
    shorter.load_state_dict(renamed)
    with skip_blocks(last, (0,)):
        torch.testing.assert_close(last(*call), shorter(*call))


@torch.no_grad()
def test_image_tokens_look_at_themselves_and_the_text() -> None:
    allowed = image_tokens_alone(5, 3, torch.device("cpu"))
    assert allowed.int().tolist() == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    q, k, v = torch.randn(3, 1, 2, 4, 8).unbind(0)
    alone = torch.eye(4, dtype=torch.bool)
    for dtype in (torch.float32, torch.bfloat16):
        with mask_attention(lambda q, k: alone):
            assert torch.equal(attention(q.to(dtype), k.to(dtype), v.to(dtype)), v.to(dtype))
    with mask_attention(lambda q, k: None):
        assert torch.equal(
            attention(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v)
        )


@torch.no_grad()
def test_only_the_attention_among_image_tokens_is_perturbed() -> None:
    # As many text tokens as image tokens: the attention to the text has the same shape.
    model = random_backbone(CONFIGS["crossdit"])
    z_t, t, conditioning = inputs(side=(4, 2 * NUM_TEXT // 2))
    seen = []
    with perturb_attention(model, (1,)), mask_attention(lambda q, k: seen.append(q.shape)):
        model(z_t, t, conditioning)
    # Self-attention of block 0, then to the text in both; block 1's own was masked before.
    assert len(seen) == 3


def test_a_block_that_is_not_there_is_refused() -> None:
    model = random_backbone(CONFIGS["dit"])
    for disturb in (skip_blocks, perturb_attention):
        for layer in (2, -1):
            told = "has no block .*; give numbers from 0 to 1"
            with pytest.raises(ConfigError, match=told), disturb(model, (layer,)):
                pass
