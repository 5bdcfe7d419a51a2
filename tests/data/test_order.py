"""The order's laws: an epoch is a permutation, a batch is of one bucket, nothing is lost."""

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectiflow.data.order import BatchOrder, sample_order


def visits(order: BatchOrder, step: int) -> list[tuple[int, int]]:
    """The (epoch, sample) pairs of a batch."""
    return [(epoch, i) for epoch, places in order.batch(step) for i in places.tolist()]


def by_queues(bucket_of: list[int], batch_size: int, seed: int, num: int) -> list[list[tuple]]:
    """The same batches as the docstring tells it: walk the stream, let queues fill."""
    queues: dict[int, list[tuple[int, int]]] = {}
    batches: list[list[tuple]] = []
    epoch = 0
    while len(batches) < num:
        for i in sample_order(seed, epoch, len(bucket_of)).tolist():
            queue = queues.setdefault(bucket_of[i], [])
            queue.append((epoch, i))
            if len(queue) == batch_size:
                batches.append(queue.copy())
                queue.clear()
        epoch += 1
    return batches[:num]


@given(st.integers(0, 2**40), st.integers(0, 50), st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_an_epochs_order_is_a_permutation(seed: int, epoch: int, num: int) -> None:
    order = sample_order(seed, epoch, num)
    assert order.sort().values.tolist() == list(range(num))
    sample_order.cache_clear()
    assert torch.equal(order, sample_order(seed, epoch, num))


@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_one_bucket_is_the_stream_cut_end_to_end(num: int, batch_size: int, step: int) -> None:
    order = BatchOrder(torch.zeros(num, dtype=torch.int64), batch_size=batch_size, seed=7)
    start = step * batch_size
    first, last = start // num, (start + batch_size - 1) // num
    stream = [(e, p) for e in range(first, last + 1) for p in sample_order(7, e, num).tolist()]
    assert visits(order, step) == stream[start - first * num :][:batch_size]


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.integers(1, 9),
    st.integers(0, 9),
    st.randoms(use_true_random=False),
)
@settings(max_examples=20, deadline=None)
def test_batches_are_those_of_queues_at_any_step_in_any_order(
    bucket_of: list[int], batch_size: int, seed: int, shuffle: object
) -> None:
    expected = by_queues(bucket_of, batch_size, seed, 15)
    order = BatchOrder(torch.tensor(bucket_of), batch_size=batch_size, seed=seed)
    steps = list(range(15))
    shuffle.shuffle(steps)
    for step in steps:
        assert visits(order, step) == expected[step]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20), st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_each_sample_comes_equally_often(bucket_of: list[int], batch_size: int) -> None:
    """Once an epoch; a batch is of one bucket; fewer than a batch of a bucket wait at any time."""
    order = BatchOrder(torch.tensor(bucket_of), batch_size=batch_size, seed=1)
    seen: Counter[tuple[int, int]] = Counter()
    times: Counter[int] = Counter()
    for step in range(30):
        batch = visits(order, step)
        assert len(batch) == batch_size
        assert len({bucket_of[i] for _, i in batch}) == 1
        seen.update(batch)
        times.update(i for _, i in batch)
        for bucket in set(bucket_of):
            counts = [times[i] for i, own in enumerate(bucket_of) if own == bucket]
            assert max(counts) - min(counts) <= 1
    assert set(seen.values()) == {1}
    last_epoch = max(epoch for epoch, _ in seen)
    missing = len(bucket_of) * last_epoch - sum(n for (e, _), n in seen.items() if e < last_epoch)
    assert missing < batch_size * len(set(bucket_of))
