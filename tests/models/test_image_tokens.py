"""Image tokens between blocks, read from outside, for every backbone by the same means."""

import pytest
import torch
from models.small_backbones import CONFIGS, inputs, random_backbone

from rectiflow.models.frame import PatchTransformer
from rectiflow.models.image_tokens import watch_image_tokens
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
