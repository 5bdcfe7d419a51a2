import dataclasses

import pytest
import torch

from rectiflow.base.errors import ConfigError, UserError
from rectiflow.models.text import ENCODERS, EncodedText, assemble
from rectiflow.models.text.conditioner import EncoderSize, TextConditioner, TextConditionerConfig

PROMPTS = [f"a photo of {what} circle" for what in "abcdefghijklmnopqrstuvw"]


def _assert_same(first: EncodedText, second: EncodedText) -> None:
    for name, column in first.columns().items():
        assert torch.equal(column, second.columns()[name]), name


def test_shapes_follow_the_config(random_conditioner):
    encoded = random_conditioner.encode(["a red circle", ""])
    conditioning = assemble(encoded)
    config = random_conditioner.config
    assert conditioning.context.shape == (2, config.context_length, config.context_dim)
    assert conditioning.pooled.shape == (2, config.pooled_dim)
    assert (config.context_length, config.context_dim, config.pooled_dim) == (28, 96, 80)
    assert not conditioning.context.requires_grad


@pytest.mark.parametrize("block_size", [1, 5, 8, 16])
def test_a_prompt_is_encoded_alike_beside_any_neighbours(random_conditioner, block_size):
    conditioner = random_conditioner
    conditioner.config = dataclasses.replace(conditioner.config, block_size=block_size)
    together = conditioner.encode(PROMPTS)
    _assert_same(conditioner.encode(PROMPTS[::-1]), together[torch.arange(22, -1, -1)])
    for row in (0, 3, 7, 22):
        _assert_same(conditioner.encode([PROMPTS[row]]), together[row : row + 1])
        _assert_same(conditioner.encode(["x" * 500, PROMPTS[row]])[1:], together[row : row + 1])
    _assert_same(conditioner.encode([PROMPTS[2]] * 3), together[torch.tensor([2, 2, 2])])


@pytest.mark.parametrize(
    "prompt", ["", " ", "😀" * 3000, "x" * 10_000, '"' + "a" * 10_000 + '"', "\0"]
)
def test_any_prompt_encodes(random_conditioner, prompt):
    encoded = random_conditioner.encode([prompt])
    assert all(column.isfinite().all() for column in encoded.columns().values())


def test_null_is_the_empty_prompt(random_conditioner):
    _assert_same(random_conditioner.null(), random_conditioner.encode([""]))
    assert len(random_conditioner.null()) == 1


@pytest.mark.parametrize("chosen", [("clip_l",), ("clip_g", "t5"), ("t5",), ()])
def test_encoders_left_out_give_zeros_in_text_and_null(random_conditioner, chosen):
    whole = random_conditioner
    part = TextConditioner(
        whole.config,
        {name: whole.encoders[name] for name in chosen},
        {name: whole.tokenizers[name] for name in chosen},
    )
    assert set(part.fingerprints()) == set(chosen)
    for ours, theirs in (
        (part.encode(PROMPTS), whole.encode(PROMPTS)),
        (part.null(), whole.null()),
    ):
        kept = {
            name: torch.full((len(theirs),), name in chosen, dtype=torch.bool) for name in ENCODERS
        }
        expected, got = assemble(theirs, kept), assemble(ours)
        assert torch.equal(got.context, expected.context)
        assert torch.equal(got.pooled, expected.pooled)


def test_truncations_name_the_lost_text(random_conditioner):
    prompt = "a red circle above a blue square, a green cross top left and a White ring"
    assert random_conditioner.truncations("a red circle") == []
    lost = dict(random_conditioner.truncations(prompt))
    # CLIP keeps 12 − 2 words here, T5 16 − 1.
    assert lost == {
        "clip_l": "cross top left and a White ring",
        "clip_g": "cross top left and a White ring",
        "t5": "White ring",
    }


def test_truncations_agree_with_what_is_encoded(random_conditioner):
    prompt = "a red circle above a blue square, a green cross top left"
    lost = dict(random_conditioner.truncations(prompt))["clip_l"]
    kept = prompt[: -len(lost)]
    ids = random_conditioner.token_ids("clip_l", [prompt, kept])
    assert torch.equal(ids[0], ids[1])
    assert dict(random_conditioner.truncations(kept)) == {}


def test_fingerprints_change_with_weight_tokenizer_and_length(random_conditioner):
    conditioner = random_conditioner
    before = conditioner.fingerprints()
    conditioner.encode(PROMPTS)
    assert conditioner.fingerprints() == before

    with torch.no_grad():
        next(conditioner.encoders["clip_l"].parameters()).view(-1)[0].add_(1e-6)
    conditioner.tokenizers["clip_g"].add_tokens(["zebra"])
    longer = dataclasses.replace(conditioner.config.t5, length=20)
    conditioner.config = dataclasses.replace(conditioner.config, t5=longer)
    after = conditioner.fingerprints()
    assert all(after[name] != before[name] for name in ENCODERS)


def test_refusals(random_conditioner):
    conditioner = random_conditioner
    with pytest.raises(ValueError, match="there is no prompt to encode"):
        conditioner.encode([])
    with pytest.raises(UserError, match=r"is not valid Unicode text \(surrogates not allowed at"):
        conditioner.encode(["a \ud800 circle"])
    with pytest.raises(ValueError, match="must have the same names"):
        TextConditioner(conditioner.config, {"t5": conditioner.encoders["t5"]}, {})
    wrong = dataclasses.replace(conditioner.config, clip_l=EncoderSize(length=12, width=16))
    with pytest.raises(ConfigError, match=r"clip_l is 32 wide \(pooled 32\), the conditioner's"):
        TextConditioner(
            wrong,
            {"clip_l": conditioner.encoders["clip_l"]},
            {"clip_l": conditioner.tokenizers["clip_l"]},
        )
    with pytest.raises(ConfigError, match="block_size=0 must be at least 1"):
        dataclasses.replace(conditioner.config, block_size=0)
    size = EncoderSize(length=4, width=8)
    with pytest.raises(ConfigError, match="clip_l gives 4 tokens and clip_g 5"):
        TextConditionerConfig(clip_l=size, clip_g=EncoderSize(length=5, width=8), t5=size)


def test_a_single_string_is_not_a_list_of_prompts(run_python):
    # Without the test suite's own type checks, which would stop the call first.
    source = """
from rectiflow.models.text.conditioner import check_prompts
try:
    check_prompts("a red circle")
except TypeError as error:
    print(error)
"""
    done = run_python(source)
    assert "prompts are a list of strings, got 'a red circle'" in done.stdout, done.stderr
