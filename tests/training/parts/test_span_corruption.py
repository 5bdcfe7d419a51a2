import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from rectiflow.training.parts.span_corruption import (
    IGNORED,
    SpanTraining,
    TokenIds,
    corrupt_spans,
    corrupted_batch,
    masked_token_accuracy,
    train_span_corruption,
)

IDS = TokenIds(pad=0, end=1, sentinels=tuple(range(63, 55, -1)))


def _restore(source: list[int], target: list[int]) -> list[int]:
    """Fill the gaps of a source from its target."""
    hidden: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token in IDS.sentinels:
            hidden[token] = []
        else:
            hidden[next(reversed(hidden))].append(token)
    restored: list[int] = []
    for token in source[:-1]:
        restored += hidden.get(token, [token])
    return restored


@pytest.mark.parametrize("num_tokens", [2, 3, 7, 15, 40])
def test_target_fills_the_gaps_of_the_input(num_tokens):
    rng = np.random.default_rng(0)
    tokens = list(range(10, 10 + num_tokens))
    for _ in range(50):
        source, target = corrupt_spans(tokens, rng, IDS, noise_density=0.25, mean_span_length=2)
        assert _restore(source, target) == tokens
        assert source[-1] == target[-1] == IDS.end
        used = [token for token in target if token in IDS.sentinels]
        assert used == list(IDS.sentinels[: len(used)])
        assert [token for token in source if token in IDS.sentinels] == used[:-1]
        num_hidden = len(target) - len(used) - 1
        assert num_hidden == max(1, min(round(num_tokens * 0.25), num_tokens - 1))


def test_gaps_are_anywhere():
    rng = np.random.default_rng(0)
    first = {
        corrupt_spans(range(10, 18), rng, IDS, noise_density=0.25, mean_span_length=2)[0][0]
        for _ in range(50)
    }
    assert first == {10, IDS.sentinels[0]}


def test_too_short_to_corrupt():
    with pytest.raises(ValueError, match="span corruption needs at least 2 tokens, got 1"):
        corrupt_spans([5], np.random.default_rng(0), IDS, noise_density=0.2, mean_span_length=2)


def test_a_batch_is_padded_to_the_prompt_length():
    training = SpanTraining(max_steps=1)
    inputs, targets = corrupted_batch(
        [[10, 11, 12], [10, 11, 12, 13, 14, 15, 16, 17]],
        IDS,
        training,
        length=12,
        rng=np.random.default_rng(0),
    )
    assert inputs.shape == (2, 12)
    assert (inputs[0] == IDS.pad).sum() > 5
    assert (targets[0] == IGNORED).any()
    assert not (targets[1] == IGNORED).any()


def test_training_learns_what_is_certain_and_repeats_bit_for_bit():
    config = T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    captions = [[start + i for i in range(6)] for start in (10, 20, 30)]
    training = SpanTraining(max_steps=60, batch_size=16, learning_rate=1e-2, warmup_steps=5)
    weights, accuracies = [], []
    for _ in range(2):
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(config)
        before = masked_token_accuracy(model, captions * 9, IDS, training, length=8, seed=1)
        train_span_corruption(
            model, captions, IDS, training, length=8, seed=0, on_log=lambda fields: None
        )
        after = masked_token_accuracy(model, captions * 9, IDS, training, length=8, seed=1)
        weights.append(model.state_dict())
        accuracies.append((before, after))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert accuracies[0] == accuracies[1]
    assert accuracies[0][0] < 0.4
    assert accuracies[0][1] > 0.9
