import pytest
import torch

from rectiflow.base.errors import ConfigError
from rectiflow.models.text import COLUMNS, ENCODERS, ClipStates, EncodedText, assemble


def _encoded(num: int = 3, *, lengths=(4, 4, 5), widths=(2, 3, 8)) -> EncodedText:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return EncodedText(
        clip_l=ClipStates(context=randn(num, lengths[0], widths[0]), pooled=randn(num, 2)),
        clip_g=ClipStates(context=randn(num, lengths[1], widths[1]), pooled=randn(num, 3)),
        t5=randn(num, lengths[2], widths[2]),
    )


def test_assembly_joins_channels_pads_to_t5_and_appends_its_tokens():
    encoded = _encoded()
    conditioning = assemble(encoded)
    assert conditioning.context.shape == (3, 9, 8)
    assert conditioning.pooled.shape == (3, 5)
    assert torch.equal(conditioning.context[:, :4, :2], encoded.clip_l.context)
    assert torch.equal(conditioning.context[:, :4, 2:5], encoded.clip_g.context)
    assert not conditioning.context[:, :4, 5:].any()
    assert torch.equal(conditioning.context[:, 4:], encoded.t5)
    assert torch.equal(conditioning.pooled[:, :2], encoded.clip_l.pooled)
    assert torch.equal(conditioning.pooled[:, 2:], encoded.clip_g.pooled)


@pytest.mark.parametrize("dropped", ENCODERS)
def test_a_dropped_encoder_gives_zeros_in_its_slice_and_only_there(dropped):
    encoded = _encoded()
    keep = {dropped: torch.tensor([True, False, True])}
    got, whole = assemble(encoded, keep), assemble(encoded)
    slices = {
        "clip_l": (got.context[1, :4, :2], got.pooled[1, :2]),
        "clip_g": (got.context[1, :4, 2:5], got.pooled[1, 2:]),
        "t5": (got.context[1, 4:], torch.zeros(0)),
    }
    for part in slices[dropped]:
        assert not part.any()
        part.copy_(torch.nan)
    for rows in ([0, 2], [1]):
        for a, b in ((got.context, whole.context), (got.pooled, whole.pooled)):
            assert (a[rows].isnan() | (a[rows] == b[rows])).all()
    assert not got.context[[0, 2]].isnan().any()


def test_a_nan_in_a_dropped_slice_does_not_survive():
    encoded = _encoded(1)
    encoded.t5.fill_(torch.nan)
    assert not assemble(encoded, {"t5": torch.tensor([False])}).context.isnan().any()


def test_columns_round_trip_and_rows():
    encoded = _encoded()
    columns = encoded.columns()
    assert tuple(columns) == COLUMNS
    again = EncodedText.concat([encoded[:1], encoded[torch.tensor([1, 2])]])
    assert len(again) == 3
    assert all(torch.equal(v, columns[k]) for k, v in again.columns().items())
    assert encoded.to(dtype=torch.float64).clip_g.pooled.dtype == torch.float64
    assert encoded[:1].expand(4).t5.shape == (4, 5, 8)


def test_refusals():
    with pytest.raises(ValueError, match=r"unknown encoder 'clip' in keep; the encoders are"):
        assemble(_encoded(), {"clip": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ConfigError, match="clip_l gives 4 tokens and clip_g 6"):
        assemble(_encoded(lengths=(4, 6, 5)))
    with pytest.raises(ConfigError, match=r"clip_l \(2\) and clip_g \(3\) together are wider"):
        assemble(_encoded(widths=(2, 3, 4)))
    with pytest.raises(ValueError, match="encoded text has the columns"):
        EncodedText.from_columns({"t5.context": torch.zeros(1, 2, 3)})
    with pytest.raises(ValueError, match="only a batch of one prompt expands, this one has 3"):
        _encoded().expand(2)
