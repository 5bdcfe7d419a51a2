"""Looked up or computed, the modulation is the same; what was not tabulated is NaN."""

import pytest
import torch
from models.small_backbones import CONFIGS, inputs, random_backbone

from rectiflow.models.conditioning import Conditioning
from rectiflow.models.substitution import is_compiled
from rectiflow.models.tabulation import tabulate
from rectiflow.models.weakening import perturb_attention, skip_blocks

TIMES = torch.tensor([1.0, 0.75, 0.4, 0.75])


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_tabulated_backbone_is_the_same_function(name: str) -> None:
    model = random_backbone(CONFIGS[name])
    z_t, _, conditioning = inputs()
    embedded = model.embed(conditioning)
    before = model(z_t, TIMES[:2], conditioning)
    tabulated, (first, second) = tabulate(model, [embedded[:1], embedded], TIMES)
    assert torch.equal(model(z_t, TIMES[:2], conditioning), before)
    for t in TIMES:
        both = t.expand(2)
        expected = model(z_t, both, embedded)
        torch.testing.assert_close(tabulated(z_t, both, second), expected, rtol=1e-5, atol=1e-5)
        joined = Conditioning.concat([first, second])
        torch.testing.assert_close(
            tabulated(z_t[[0, 0, 1]], t.expand(3), joined),
            expected[[0, 0, 1]],
            rtol=1e-5,
            atol=1e-5,
        )
        for weaken in (skip_blocks, perturb_attention):
            torch.testing.assert_close(
                weaken(tabulated, (0,))(z_t, both, second),
                weaken(model, (0,))(z_t, both, embedded),
                rtol=1e-5,
                atol=1e-5,
            )
    # Where nothing was tabulated there is no silent other time.
    assert tabulated(z_t, torch.full((2,), 0.5), second).isnan().all()


@torch.no_grad()
def test_of_many_times_the_tables_hold_some_and_go_on_with_the_drawing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_backbone(CONFIGS["mmdit"])
    z_t, _, conditioning = inputs()
    embedded = model.embed(conditioning)
    few = torch.linspace(1.0, 0.0, 5)
    monkeypatch.setattr("rectiflow.models.tabulation.MAX_TIMES", 5)
    at_once, (told,) = tabulate(model, [embedded], few)
    monkeypatch.setattr("rectiflow.models.tabulation.MAX_TIMES", 2)
    tabulated, (prompt,) = tabulate(model, [embedded], few)
    weak = skip_blocks(tabulated, (1,))
    table = tabulated.final_layer.adaLN_modulation.table
    assert len(table) == 2 + 1 < len(at_once.final_layer.adaLN_modulation.table)
    for t in (*few, few[0]):
        both = t.expand(2)
        for found, expected in (
            (tabulated(z_t, both, prompt), at_once(z_t, both, told)),
            (weak(z_t, both, prompt), skip_blocks(at_once, (1,))(z_t, both, told)),
        ):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert tabulated(z_t, torch.full((2,), 0.6), prompt).isnan().all()


@torch.no_grad()
def test_a_prompt_has_the_same_bits_beside_any_other() -> None:
    model = random_backbone(CONFIGS["mmdit"])
    z_t, _, conditioning = inputs(num=5)
    embedded = model.embed(conditioning)
    alone, (own,) = tabulate(model, [embedded[3:4]], TIMES)
    beside, (_, others) = tabulate(model, [embedded, embedded], TIMES)
    for t in TIMES:
        assert torch.equal(
            alone(z_t[3:4], t.expand(1), own), beside(z_t[3:4], t.expand(1), others[3:4])
        )


def test_a_copy_of_a_compiled_module_is_not_the_compiled_one() -> None:
    model = random_backbone(CONFIGS["mmdit"])
    assert not is_compiled(model)
    model.blocks[0]._compiled_call_impl = lambda *_: pytest.fail(
        "the block that it was copied from"
    )
    assert is_compiled(model)
    z_t, _, conditioning = inputs()
    tabulated, (told,) = tabulate(model, [model.embed(conditioning)], TIMES)
    assert not is_compiled(tabulated)
    assert torch.isfinite(tabulated(z_t, TIMES[:1].expand(2), told)).all()
