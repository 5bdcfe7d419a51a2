"""What holds for every backbone under the one trainer."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from models.small_backbones import CONFIGS, inputs, random_backbone

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import ConfigError
from rectiflow.models.backbones import BackboneConfig, build_backbone
from rectiflow.models.baselines.uvit import UViTConfig
from rectiflow.models.conditioning import Conditioning, EmbeddedConditioning
from rectiflow.models.layers.attention import StreamAttention
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.models.weakening import perturb_attention, skip_blocks

TESTS = str(Path(__file__).parents[1])


@dataclass(frozen=True, kw_only=True)
class Holder:
    backbone: BackboneConfig


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> BackboneConfig:
    return CONFIGS[request.param]


@pytest.mark.parametrize("use_qk_norm", [False, True])
@torch.no_grad()
def test_the_output_is_shaped_as_the_latents_at_any_size(config, use_qk_norm):
    model = random_backbone(replace(config, use_qk_norm=use_qk_norm))
    for side in ((8, 8), (8, 12), (16, 4)):
        output = model(*inputs(side=side))
        assert output.shape == (2, 16, *side)
        assert 0.1 < output.std() < 100


@torch.no_grad()
def test_a_row_does_not_see_the_other_rows(config):
    model = random_backbone(config)
    z_t, t, conditioning = inputs(num=3)
    together = model(z_t, t, conditioning)
    for i in range(3):
        alone = model(z_t[i : i + 1], t[i : i + 1], conditioning[i : i + 1])
        assert (alone[0] - together[i]).abs().max() < 1e-4


@torch.no_grad()
def test_everything_that_is_told_counts(config):
    model = random_backbone(config)
    z_t, t, conditioning = inputs(num=1)
    told = model(z_t, t, conditioning)

    def change(value: torch.Tensor, place: int) -> torch.Tensor:
        changed = value.clone()
        changed[0, place] += 1.0
        return changed

    context, pooled = conditioning.context, conditioning.pooled
    others = [Conditioning(context=change(context, i), pooled=pooled) for i in range(10)]
    others.append(Conditioning(context=context, pooled=change(pooled, 3)))
    for other in others:
        assert (model(z_t, t, other) - told).abs().max() > 1e-4
    assert (model(z_t, 0.5 * t, conditioning) - told).abs().max() > 1e-4
    # Each place of the latents is seen from the opposite corner.
    assert (model(change(z_t, 0), t, conditioning) - told)[..., -1, -1].abs().max() > 1e-4


@torch.no_grad()
def test_equal_last_tokens_may_be_held_as_one(config):
    model = random_backbone(config)
    z_t, t, conditioning = inputs()
    count = 3
    context = conditioning.context.clone()
    context[:, -count:] = context[:1, -1:]
    whole = replace(conditioning, context=context)
    held = whole.with_last_as_one(count)
    assert held.context.shape[1] == context.shape[1] - count + 1
    for network in (model, skip_blocks(model, (0,)), perturb_attention(model, (0, 1))):
        expected = network(z_t, t, whole)
        torch.testing.assert_close(network(z_t, t, held), expected, rtol=1e-5, atol=1e-5)
        assert (network(z_t, t, replace(held, last_count=1)) - expected).abs().max() > 1e-4


@torch.no_grad()
def test_prompts_may_be_embedded_once_for_all_times(config):
    model = random_backbone(config)
    z_t, t, conditioning = inputs()
    embedded = model.embed(conditioning)
    assert model.embed(embedded) is embedded
    for time in (t, t / 2):
        assert torch.equal(model(z_t, time, embedded), model(z_t, time, conditioning))
    both = Conditioning.concat([embedded, embedded[:1]])
    assert isinstance(both, EmbeddedConditioning)
    assert both.context.shape[0] == len(embedded) + 1


def test_every_weight_has_a_gradient(config):
    model = random_backbone(replace(config, use_qk_norm=True))
    model(*inputs()).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # Nothing reads what the text looks at in an MM-DiT's last block.
        is_unread = name.startswith("joint_blocks.1.") and name.endswith("ln_q.weight")
        assert parameter.grad.abs().max() > 0 or (is_unread and "x_block" not in name), name


@torch.no_grad()
def test_first_weights_are_all_there_is_even_where_a_model_has_no_memory(config):
    config = replace(config, use_qk_norm=True)
    whole = build_backbone(config)
    whole.initialize(torch.Generator().manual_seed(1))
    with torch.device("meta"):
        model = build_backbone(config)
    first = dict(model.first_weights(torch.Generator().manual_seed(1)))
    expected = whole.state_dict()
    assert first.keys() == expected.keys()
    assert all(torch.equal(first[name], value) for name, value in expected.items())
    assert torch.equal(model.closed_form_positions(), whole.pos_embed)


@torch.no_grad()
def test_starts_as_zero_from_the_generator_alone(config):
    states = []
    for seed in (1, 1, 2):
        model = build_backbone(config)
        model.initialize(torch.Generator().manual_seed(seed))
        assert model(*inputs()).abs().max() == 0.0
        states.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@torch.no_grad()
def test_qk_norm_makes_the_size_of_queries_and_keys_irrelevant(config):
    for use_qk_norm in (False, True):
        model = random_backbone(replace(config, use_qk_norm=use_qk_norm))
        before = model(*inputs())
        for module in model.modules():
            if isinstance(module, StreamAttention):
                width = module.qkv.in_features
                module.qkv.weight[: 2 * width] *= 3.0
                module.qkv.bias[: 2 * width] *= 3.0
        change = (model(*inputs()) - before).abs().max()
        assert change < 1e-3 if use_qk_norm else change > 1e-3


def test_blocks_are_the_repeated_part(config):
    model = build_backbone(config)
    assert len(model.blocks) == config.depth
    assert model.config is config


COMPILED = """
from dataclasses import replace
import torch
from models.small_backbones import CONFIGS, inputs, random_backbone
for kind, config in CONFIGS.items():
    model = random_backbone(replace(config, depth=1))
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(*inputs())
        print(kind, (compiled - model(*inputs())).abs().max().item() < 1e-4)
"""


@pytest.mark.compile
def test_compiles_to_one_graph(run_python, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([TESTS, *filter(None, sys.path)]))
    result = run_python(COMPILED, timeout_s=300.0)
    assert result.stdout.splitlines() == [f"{kind} True" for kind in CONFIGS], result.stderr


def test_sizes_that_do_not_fit_are_told(config):
    model = build_backbone(config)
    p = config.patch_size
    with pytest.raises(
        ValueError, match=f"8×9; both sides must be multiples of the patch size {p}"
    ):
        model(*inputs(side=(8, 9)))
    with pytest.raises(ValueError, match=r"×9 tokens are larger than the position grid"):
        model(*inputs(side=(8, 9 * p)))


def test_json_says_which_it_is(config):
    data = to_json(Holder(backbone=config))
    assert data["backbone"]["kind"] == type(config).__name__
    assert from_json(Holder, data) == Holder(backbone=config)


def test_width_follows_depth_unless_it_is_given(config):
    assert replace(config, depth=5, width=None, head_dim=64).hidden_dim == 320
    assert replace(config, depth=5, width=128, head_dim=32).hidden_dim == 128
    assert config.title


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"width": 100}, "a width of 100 cannot be cut into heads of head_dim=64; give a mul"),
        ({"width": 0}, "a width of 0 cannot be cut into heads"),
        ({"width": 54, "head_dim": 54}, "width=54 must be a multiple of 4"),
        ({"base_side": 9}, "base_side=9 does not fit into position_side=8"),
    ],
)
def test_a_size_that_cannot_be_is_refused(changes, text):
    for config in CONFIGS.values():
        with pytest.raises(ConfigError, match=text):
            replace(config, **{"width": None, "head_dim": 64} | changes)


def test_levels_and_clip_tokens_that_cannot_be_are_refused():
    for patch_size in (1, 3):
        with pytest.raises(ConfigError, match=f"patch_size={patch_size}: a UViT's levels halve"):
            UViTConfig(depth=1, patch_size=patch_size)
    with pytest.raises(ConfigError, match="num_residual_blocks=0 must be at least 1"):
        UViTConfig(depth=1, num_residual_blocks=0)
    with pytest.raises(ConfigError, match="num_clip_tokens=0 must be at least 1; leave it out"):
        MMDiTConfig(depth=1, num_clip_tokens=0)
    model = build_backbone(replace(CONFIGS["mmdit3"], num_clip_tokens=10))
    with pytest.raises(ValueError, match="has 10 tokens, num_clip_tokens=10 leaves none for T5"):
        model(*inputs())
