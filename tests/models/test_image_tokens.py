"""Image tokens between blocks, read from outside, for every backbone by the same means."""

from dataclasses import replace

import pytest
import torch
from models.small_backbones import CONFIGS, inputs, random_backbone

from rectiflow.models.frame import PatchTransformer
from rectiflow.models.image_tokens import (
    image_tokens,
    route_image_tokens,
    watch_image_tokens,
    with_image_tokens,
)
from rectiflow.models.layers.embeddings import unpatchify

NUM_IMAGE = 4 * 6


@pytest.mark.parametrize("kind", ["mmdit", "mmdit3", "mmdit-x", "dit", "crossdit", "uvit"])
def test_watching_changes_nothing_and_sees_the_image(kind: str) -> None:
    backbone, (z_t, t, conditioning) = random_backbone(CONFIGS[kind]), inputs()
    plain = backbone(z_t, t, conditioning)
    with watch_image_tokens(backbone, 0, NUM_IMAGE) as early:
        with watch_image_tokens(backbone, 1, NUM_IMAGE) as late:
            watched = backbone(z_t, t, conditioning)
        again = backbone(z_t, t, conditioning)
    assert torch.equal(watched, plain)
    assert torch.equal(again, plain)
    assert [len(early), len(late)] == [2, 1]
    assert early[0].shape == late[0].shape == (2, NUM_IMAGE, backbone.config.hidden_dim)
    assert not torch.equal(early[0], late[0])
    if isinstance(backbone, PatchTransformer):
        # What is left after the last block is the way out.
        vector = backbone.embed_vector(t, backbone.embed(conditioning).pooled)
        out = backbone.final_layer(late[0], vector)
        assert torch.equal(unpatchify(out, rows=4, columns=6, patch_size=2), plain)
    # One picture's tokens, whatever the kind, move with that picture's noise alone.
    z_t[0] += 1.0
    with watch_image_tokens(backbone, 0, NUM_IMAGE) as moved:
        backbone(z_t, t, conditioning)
    assert torch.equal(moved[0][1], early[0][1])
    assert (moved[0][0] != early[0][0]).any(dim=1).all()


ROUTED = ("mmdit", "mmdit3", "mmdit-x", "dit", "crossdit", "uvit")


@pytest.mark.parametrize("kind", ROUTED)
def test_a_route_that_all_take_changes_nothing(kind: str) -> None:
    backbone, (z_t, t, conditioning) = random_backbone(CONFIGS[kind]), inputs()
    plain = backbone(z_t, t, conditioning)
    everyone = torch.arange(NUM_IMAGE).expand(2, -1)
    with route_image_tokens(backbone, 0, 0, everyone, NUM_IMAGE):
        torch.testing.assert_close(backbone(z_t, t, conditioning), plain)
    assert torch.equal(backbone(z_t, t, conditioning), plain)


@pytest.mark.parametrize("kind", ROUTED)
def test_tokens_that_pass_by_stay_as_they_were_and_are_not_seen(kind: str) -> None:
    config = replace(CONFIGS[kind], depth=3, width=128)
    backbone, (z_t, t, conditioning) = random_backbone(config), inputs()
    kept = torch.tensor([[0, 3, 4, 20], [5, 6, 7, 23]])
    rest = torch.ones(2, NUM_IMAGE).scatter(1, kept, 0.0).bool()

    def run() -> list[torch.Tensor]:
        with (
            route_image_tokens(backbone, 1, 1, kept, NUM_IMAGE),
            watch_image_tokens(backbone, 0, NUM_IMAGE) as before,
            watch_image_tokens(backbone, 1, NUM_IMAGE) as after,
            watch_image_tokens(backbone, 2, NUM_IMAGE) as end,
        ):
            output = backbone(z_t, t, conditioning)
        return [before[0], after[0], end[0], output]

    before, after, end, output = run()
    assert torch.equal(after[rest], before[rest])
    assert (after[~rest] != before[~rest]).any(dim=-1).all()
    assert (end[rest] != before[rest]).any(dim=-1).all()
    assert output.shape == z_t.shape

    # Whatever those that pass by hold before the route, those on it do not know of it.
    def disturb(module: torch.nn.Module, arguments: object, passed: object) -> object:
        tokens = image_tokens(passed, NUM_IMAGE)
        return with_image_tokens(passed, NUM_IMAGE, tokens + rest[..., None])

    handle = backbone.blocks[0].register_forward_hook(disturb)
    _, disturbed, _, _ = run()
    handle.remove()
    torch.testing.assert_close(disturbed[~rest], after[~rest])
    torch.testing.assert_close(disturbed[rest], after[rest] + 1.0)
