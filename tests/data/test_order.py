from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycurv.data.order import Key, Permutation, Share, Streams, draw_classes, hash64, uniform

LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=30).filter(any)


def streams(lengths, batch_size=7, rank=0, size=1, count=4, window=2, seed=0, epoch=0, shuffle=True):
    count = min(count, np.count_nonzero(lengths))
    return Streams(lengths, Share(batch_size, rank, size), Key(seed, epoch, shuffle), streams=count, window=window)


def permutation(lengths, batch_size=7, rank=0, size=1, seed=0, epoch=0, shuffle=True):
    return Permutation(sum(lengths), Share(batch_size, rank, size), Key(seed, epoch, shuffle))


def epoch_of(order, lengths, batch_size=7):
    return [order.rows(step).tolist() for step in range(-(-sum(lengths) // batch_size))]


@pytest.mark.parametrize("order", [streams, permutation])
@given(lengths=LENGTHS, batch_size=st.integers(1, 40), shuffle=st.booleans())
def test_every_row_exactly_once(order, lengths, batch_size, shuffle):
    batches = epoch_of(order(lengths, batch_size, shuffle=shuffle), lengths, batch_size)
    assert sorted(chain(*batches)) == list(range(sum(lengths)))
    assert all(len(batch) == batch_size for batch in batches[:-1])


@pytest.mark.parametrize("order", [streams, permutation])
@given(lengths=LENGTHS, batch_size=st.integers(1, 40), size=st.integers(1, 9))
def test_the_workers_divide_the_batches_of_one_process(order, lengths, batch_size, size):
    whole = epoch_of(order(lengths, batch_size), lengths, batch_size)
    shares = [epoch_of(order(lengths, batch_size, rank, size), lengths, batch_size) for rank in range(size)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert sorted(chain(*parts)) == sorted(batch)
        for part in parts:  # in the same canonical order
            assert part == [row for row in batch if row in set(part)]


@given(lengths=LENGTHS, size=st.integers(1, 5), count=st.integers(1, 8), window=st.integers(1, 4))
def test_workers_open_row_groups_of_their_own_alone(lengths, size, count, window):
    first = np.cumsum([0, *lengths])
    owned = []
    for rank in range(size):
        order = streams(lengths, 7, rank, size, count, window)
        groups = set()
        for step, rows in enumerate(epoch_of(order, lengths)):
            needed = set((np.searchsorted(first, rows, side="right") - 1).tolist())
            assert needed <= set(order.open_groups(step))
            groups |= set(order.open_groups(step))
        owned.append(groups)
    assert sum(len(groups) for groups in owned) == len(set().union(*owned))


def test_streams_hold_few_row_groups_at_a_time():
    lengths = [10] * 400
    order = streams(lengths, batch_size=16, count=8, window=1)
    held = [len(order.open_groups(step)) for step in range(250)]
    assert max(held) <= 16
    # The streams are out of step, so that new row groups come one after the other, not all at once.
    new = [len(set(order.open_groups(s + 1)) - set(order.open_groups(s))) for s in range(249)]
    assert max(new) <= 3


@pytest.mark.parametrize("order", [streams, permutation])
def test_seed_and_epoch_make_the_order(order):
    lengths = [10] * 20
    orders = {
        tuple(chain(*epoch_of(order(lengths, seed=seed, epoch=epoch), lengths))) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(orders) == 4
    assert epoch_of(order(lengths), lengths) == epoch_of(order(lengths), lengths)


def test_rows_from_far_apart_meet_in_a_batch():
    rows = streams([10] * 400, batch_size=64, count=32, window=1).rows(0)
    assert len(np.unique(rows // 10)) >= 32
    assert np.ptp(rows) > 2000


def test_the_order_is_the_same_on_every_machine():
    assert permutation([8], 8).rows(0).tolist() == [3, 1, 6, 2, 4, 7, 0, 5]
    assert hash64(1, 2, [3, 4]).tolist() == hash64(1, 2, np.array([3, 4])).tolist()


def test_uniform_numbers_are_uniform_and_independent():
    values = uniform(0, np.arange(20000)[:, None], np.arange(2))
    assert 0 <= values.min() < values.max() < 1
    assert abs(values.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.03


@given(count=st.integers(1, 50), seed=st.integers(0, 2**62))
def test_drawn_classes_are_distinct_and_sorted(count, seed):
    drawn = draw_classes(50, count, seed)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == count
