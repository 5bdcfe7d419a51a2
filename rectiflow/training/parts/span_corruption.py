"""Trains a T5 encoder by span corruption: gaps in a caption are filled in by a small decoder.

A gap of the input is one sentinel; the target is each sentinel followed by what it hides. The
decoder is thrown away afterwards. Nothing is masked, since SD3 reads T5 without a mask.
Source: arXiv 1910.10683, section 3.1.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rectiflow.base.seeds import numpy_generator
from rectiflow.training.schedule import Trapezoid

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class SpanTraining:
    """How long, how fast, and how much of a caption is hidden."""

    max_steps: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    noise_density: float = 0.25
    mean_span_length: float = 2.0
    log_every: int = 20


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """The ids with a meaning of their own; `sentinels` in the order in which gaps use them."""

    pad: int
    end: int
    sentinels: tuple[int, ...]


def corrupt_spans(
    tokens: Sequence[int],
    rng: np.random.Generator,
    ids: TokenIds,
    *,
    noise_density: float,
    mean_span_length: float,
) -> tuple[list[int], list[int]]:
    """Hide random spans of `tokens`; returns (input, target), each with the end token.

    Raises:
        ValueError: fewer than two tokens, of which one must stay and one be hidden.
    """
    num_tokens = len(tokens)
    if num_tokens < 2:
        raise ValueError(f"span corruption needs at least 2 tokens, got {num_tokens}")
    num_hidden = min(max(1, round(num_tokens * noise_density)), num_tokens - 1)
    num_spans = max(1, round(num_hidden / mean_span_length))
    num_spans = min(num_spans, num_hidden, num_tokens - num_hidden, len(ids.sentinels) - 1)
    hidden = _random_parts(num_hidden, num_spans, rng)
    shown = _random_parts(num_tokens - num_hidden, num_spans, rng)
    # A caption may begin with a gap as well as with a shown part: turn it by a random amount.
    source: list[int] = []
    target: list[int] = []
    position = 0
    is_hidden_first = bool(rng.integers(2))
    for span in range(num_spans):
        lengths = [(False, shown[span]), (True, hidden[span])]
        for is_hidden, length in lengths[::-1] if is_hidden_first else lengths:
            piece = list(tokens[position : position + length])
            position += length
            if is_hidden:
                source.append(ids.sentinels[span])
                target += [ids.sentinels[span], *piece]
            else:
                source += piece
    target.append(ids.sentinels[num_spans])
    return [*source, ids.end], [*target, ids.end]


def corrupted_batch(
    captions: Sequence[Sequence[int]],
    ids: TokenIds,
    training: SpanTraining,
    *,
    length: int,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Inputs [b length] padded as prompts are, and targets [b m] where padding is ignored."""
    pairs = [
        corrupt_spans(
            tokens,
            rng,
            ids,
            noise_density=training.noise_density,
            mean_span_length=training.mean_span_length,
        )
        for tokens in captions
    ]
    target_length = max(len(target) for _, target in pairs)
    inputs = torch.tensor([source + [ids.pad] * (length - len(source)) for source, _ in pairs])
    targets = torch.tensor(
        [target + [IGNORED] * (target_length - len(target)) for _, target in pairs]
    )
    return inputs, targets


def train_span_corruption(
    model: Any,
    captions: Sequence[Sequence[int]],
    ids: TokenIds,
    training: SpanTraining,
    *,
    length: int,
    seed: int,
    on_log: Callable[[dict[str, float]], None],
) -> None:
    """Optimise a `T5ForConditionalGeneration` in place; captions are token ids without the end.

    `on_log` is called now and then with step, loss and learning rate.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = Trapezoid(warmup_steps=training.warmup_steps, decay_fraction=1.0)
    model.train()
    for step in range(training.max_steps):
        rng = numpy_generator(seed, "span corruption", step)
        rate = training.learning_rate * schedule.factor(step, training.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = rng.integers(len(captions), size=training.batch_size)
        inputs, targets = corrupted_batch(
            [captions[row] for row in rows], ids, training, length=length, rng=rng
        )
        loss = model(input_ids=inputs, labels=targets).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % training.log_every == 0 or step == training.max_steps - 1:
            on_log({"step": step, "loss_t5": float(loss.detach()), "learning_rate": rate})
    model.eval()


@torch.no_grad()
def masked_token_accuracy(
    model: Any,
    captions: Sequence[Sequence[int]],
    ids: TokenIds,
    training: SpanTraining,
    *,
    length: int,
    seed: int,
) -> float:
    """How often a hidden token is the most likely one, given those before it, in [0, 1]."""
    rng = numpy_generator(seed, "masked token accuracy")
    inputs, targets = corrupted_batch(captions, ids, training, length=length, rng=rng)
    found = model(input_ids=inputs, labels=targets).logits.argmax(dim=-1)
    framing = torch.tensor([IGNORED, ids.end, *ids.sentinels])
    is_hidden = ~torch.isin(targets, framing)
    return (found == targets)[is_hidden].float().mean().item()


def _random_parts(total: int, num_parts: int, rng: np.random.Generator) -> list[int]:
    """`total` as a sum of positive parts, all ways equally likely."""
    cuts = np.sort(rng.choice(np.arange(1, total), size=num_parts - 1, replace=False))
    return np.diff([0, *cuts.tolist(), total]).tolist()
