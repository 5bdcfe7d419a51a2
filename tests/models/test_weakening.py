"""A disturbed backbone differs in the blocks asked for, and the given one stays as it is."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from models.small_backbones import CONFIGS, NUM_TEXT, inputs, random_backbone

from rectiflow.base.errors import ConfigError
from rectiflow.models.layers.attention import attention
from rectiflow.models.weakening import image_tokens_alone, perturb_attention, skip_blocks

KINDS = ("mmdit", "mmdit3", "mmdit-x", "dit", "crossdit", "uvit")
by_kind = pytest.mark.parametrize("kind", KINDS)


@by_kind
@torch.no_grad()
def test_the_given_network_stays_as_it_is(kind: str) -> None:
    model, call = random_backbone(CONFIGS[kind]), inputs()
    before = model(*call)
    for disturb in (skip_blocks, perturb_attention):
        found = []
        for layers in ((0,), (1,), (0, 1)):
            found.append(disturb(model, layers)(*call))
            assert torch.equal(model(*call), before)
        for i, output in enumerate(found):
            assert torch.isfinite(output).all()
            for other in (before, *found[:i]):
                assert (output - other).abs().max() > 1e-3


# The block that is left of the MMDiT-X has no second attention.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mmdit-x"])
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
    torch.testing.assert_close(skip_blocks(last, (0,))(*call), shorter(*call))


@torch.no_grad()
def test_image_tokens_look_at_themselves_and_the_text() -> None:
    allowed = image_tokens_alone(5, 5, 3, torch.device("cpu"))
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
        alike = (q.to(dtype), k.to(dtype), v.to(dtype))
        assert torch.equal(attention(*alike, mask=alone), alike[-1])


@pytest.mark.parametrize("kind", ["mmdit", "mmdit3", "mmdit-x", "dit", "crossdit"])
@torch.no_grad()
def test_a_perturbed_patch_tells_no_other_of_itself(kind: str) -> None:
    # A single block: the next one's text, which looks at all, would carry it on.
    config = replace(CONFIGS[kind], depth=1, width=128)
    model = random_backbone(config)
    z_t, t, conditioning = inputs()
    changed = z_t.clone()
    changed[..., :2, :2] += 1.0
    for network, is_local in ((perturb_attention(model, (0,)), True), (model, False)):
        moved = (network(changed, t, conditioning) - network(z_t, t, conditioning)).abs()
        assert moved[..., :2, :2].max() > 1e-3
        moved[..., :2, :2] = 0.0
        assert (moved.max() == 0.0) == is_local


@torch.no_grad()
def test_only_the_attention_among_image_tokens_is_perturbed(monkeypatch) -> None:
    # As many text tokens as image tokens: the attention to the text has the same shape.
    model = random_backbone(CONFIGS["crossdit"])
    z_t, t, conditioning = inputs(side=(4, 2 * NUM_TEXT // 2))
    has_mask = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def recording(q, k, v, attn_mask=None):
        has_mask.append(attn_mask is not None)
        return plain(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recording)
    perturb_attention(model, (1,))(z_t, t, conditioning)
    # Of each block first the attention among image tokens, then that to the text.
    assert has_mask == [False, False, True, False]


@torch.no_grad()
def test_threads_do_not_disturb_each_other() -> None:
    model, call = random_backbone(CONFIGS["mmdit"]), inputs()
    networks = [model, perturb_attention(model, (0,)), skip_blocks(model, (1,))] * 4
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda network: network(*call), networks * 5))
    for network, output in zip(networks * 5, found, strict=True):
        torch.testing.assert_close(output, network(*call))


def test_a_block_that_is_not_there_is_refused() -> None:
    model = random_backbone(CONFIGS["dit"])
    for disturb in (skip_blocks, perturb_attention):
        for layer in (2, -1):
            told = "has no block .*; give numbers from 0 to 1"
            with pytest.raises(ConfigError, match=told):
                disturb(model, (layer,))
