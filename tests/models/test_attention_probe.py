"""What is seen of attention, against sums written out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from models.small_backbones import CONFIGS, NUM_TEXT, inputs, random_backbone

from rectiflow.models.attention_probe import AttentionSeen, observe_attention
from rectiflow.models.layers.attention import attention, watch_attention
from rectiflow.models.mmdit import MMDiTConfig


def test_one_attention_by_hand() -> None:
    # Heads of 4 features, so logits are q·k/2: rows (2, 0, -6) and (0, 0, 0).
    q = torch.tensor([[[[4.0, 0, 0, 0], [0, 0, 0, 0]]]])
    k = torch.tensor([[[[1.0, 0, 0, 0], [0, 1, 0, 0], [-3, 0, 0, 1]]]])
    seen = AttentionSeen()
    seen.add(q, k)
    weights = [math.exp(2), 1.0, math.exp(-6)]
    p = [w / sum(weights) for w in weights]
    first = -sum(x * math.log(x) for x in p)
    assert seen.max_logit == 6.0
    assert seen.entropy == pytest.approx((first + math.log(3)) / 2, rel=1e-6)
    # Another batch: the largest stays, the mean is over all.
    seen.add(torch.zeros(1, 1, 2, 4), k)
    assert seen.max_logit == 6.0
    assert seen.entropy == pytest.approx((first + 3 * math.log(3)) / 4, rel=1e-6)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_every_block_is_seen_and_nothing_changes(kind: str) -> None:
    config = CONFIGS[kind]
    model = random_backbone(config)
    z_t, t, conditioning = inputs()
    before = model(z_t, t, conditioning)
    with observe_attention(model) as blocks:
        watched = model(z_t, t, conditioning)
        once = [(block.max_logit, block.entropy) for block in blocks]
        model(z_t, t, conditioning)
    assert torch.equal(watched, before)
    assert len(blocks) == config.depth
    has_cross = kind.startswith(("crossdit", "uvit"))
    num_image = (8 // config.patch_size) * (12 // config.patch_size)
    num_dual = config.num_second_attentions if isinstance(config, MMDiTConfig) else 0
    for i, (block, (max_logit, entropy)) in enumerate(zip(blocks, once, strict=True)):
        num_keys = [num_image, NUM_TEXT] if has_cross else [num_image + NUM_TEXT]
        num_keys += [num_image] if i < num_dual else []
        assert len(block.attentions) == len(num_keys)
        for seen, keys in zip(block.attentions, num_keys, strict=True):
            assert 0 < seen.entropy < math.log(keys)
        # The same batch again changes neither.
        assert block.max_logit == max_logit == max(s.max_logit for s in block.attentions)
        assert block.entropy == pytest.approx(entropy)
    # Nobody watches any more.
    counts = [seen.num_distributions for block in blocks for seen in block.attentions]
    model(z_t, t, conditioning)
    assert counts == [seen.num_distributions for block in blocks for seen in block.attentions]


@torch.no_grad()
def test_the_logits_are_those_of_the_projections() -> None:
    model = random_backbone(replace(CONFIGS["dit"], depth=1, use_qk_norm=True))
    block, caught = model.blocks[0], []
    handle = block.attn.qkv.register_forward_hook(lambda *call: caught.append(call[2]))
    with observe_attention(model) as (seen,):
        model(*inputs(num=1))
    handle.remove()
    q, k, _ = caught[0].reshape(NUM_TEXT + 24, 3, -1, 64).unbind(1)
    q, k = block.attn.ln_q(q), block.attn.ln_k(k)
    logits = torch.einsum("nhd,mhd->hnm", q, k) / 8.0
    assert seen.max_logit == pytest.approx(logits.abs().max().item(), rel=1e-5)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean().item()
    assert seen.entropy == pytest.approx(entropy, rel=1e-5)


def test_an_error_ends_the_watching() -> None:
    q, calls = torch.zeros(1, 1, 2, 4), []
    with pytest.raises(KeyError), watch_attention(lambda q, k: calls.append(q.shape)):
        attention(q, q, q)
        raise KeyError
    attention(q, q, q)
    assert calls == [(1, 1, 2, 4)]


def test_attention_outside_of_blocks_is_not_counted() -> None:
    model, q = random_backbone(CONFIGS["dit"]), torch.zeros(1, 1, 2, 4)
    with observe_attention(model) as blocks:
        attention(q, q, q)
    assert [block.attentions for block in blocks] == [[], []]
    assert [(block.max_logit, block.entropy) for block in blocks] == [(0.0, 0.0)] * 2
