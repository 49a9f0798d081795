"""Writes through views, and what shares memory: tangents follow the values."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raycurv.curvature import Tape
from tests.curvature.test_operators import check


def assigned(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 0] = x[:, 0] * x[:, 1]
    return out * x


def every_other_column(x: Tensor) -> Tensor:
    out = torch.zeros(4, 12, dtype=x.dtype)
    out[:, ::2] = x * x
    out[:, 1::2] = x.sin()
    return out.cumsum(1)


def slice_added(x: Tensor) -> Tensor:
    y = x * 2
    y[1:3].add_(x[:2] * x[2:])
    return y * x


def recurrent(x: Tensor) -> Tensor:
    y = x * 1
    for i in range(1, 6):
        y[:, i] = torch.tanh(y[:, i - 1]) * x[:, i]
    return y


def constant_in_a_row(x: Tensor) -> Tensor:
    y = x * x
    y[1] = 3.0
    y[2] = torch.arange(6.0)
    return y * x


def through_two_views(x: Tensor) -> Tensor:
    y = x * 1
    left, flat = y[:, :3], y.view(-1)
    left.mul_(x[:, 3:])
    flat[2:9].sin_()
    return y * x + left.sum()


def made_before(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    first, second = out[0], out[1]
    first.copy_(x[0] * x[1])
    return out + (second + x[2]) * first


def transposed(x: Tensor) -> Tensor:
    y = (x * 1).t()
    y[2:4] *= x[1, 1]
    return y.t() * x


def rows_by_index(x: Tensor) -> Tensor:
    y = torch.zeros(6, 6, dtype=x.dtype).index_put((torch.tensor([0, 5, 2, 1]),), x * x)
    y[torch.tensor([0, 3])] += x[:2]
    y[:, torch.tensor([True, False, True, False, False, False])] = x.sum()
    return y


def overwritten_before_it_is_read(x: Tensor) -> Tensor:
    y = x * x
    z = y[1:3]
    y[2] = x[0]
    return z * x[:2]


def outside_the_write(x: Tensor) -> Tensor:
    buffer = torch.zeros(10, 6, dtype=x.dtype)
    buffer[2:6] = x * x
    buffer[3] = x[0]
    return buffer[1:4] * buffer[4:7]


def diagonal(x: Tensor) -> Tensor:
    y = x[:, :4] * 1
    y.diagonal().mul_(x[:, 5])
    return y * y


def repeated(x: Tensor) -> Tensor:
    out = torch.zeros(3, 4, 6, dtype=x.dtype)
    out[:2] = (x * x).expand(2, 4, 6)
    out[2, :, 0] = x[:, 1]
    return out


def padded_sequences(x: Tensor) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([x[0, :2], x[1], x[2, :4]], batch_first=True) * 2


def packed_sequences(x: Tensor) -> Tensor:
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 4, 4, 1]), batch_first=True)
    return torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0] * x


def complex_parts(x: Tensor) -> Tensor:
    z = torch.zeros(4, 3, dtype=torch.complex128)
    z.real[:] = x[:, :3]
    z.imag.copy_(x[:, 3:])
    z[1] = z[0].conj() * z[2]
    return torch.view_as_real(z * z)


WRITES = [
    *(assigned, every_other_column, slice_added, recurrent, constant_in_a_row, through_two_views, made_before),
    *(transposed, rows_by_index, overwritten_before_it_is_read, outside_the_write, diagonal, repeated),
    *(padded_sequences, packed_sequences, complex_parts),
]


@pytest.mark.parametrize("function", WRITES, ids=lambda function: function.__name__)
def test_tangents_follow_writes_through_views(function):
    check(function, [(4, 6)])


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 5, 6)])
def test_circular_padding(shape):
    check(lambda x: F.pad(x, (2, 1) * (len(shape) - 2), "circular") ** 2, [shape])


def test_what_is_detached_or_written_without_gradients_is_constant():
    def function(x):
        y = x * x
        with torch.no_grad():
            y[0] = 7.0
        y.detach()[1] *= 2
        z = torch.view_as_complex(y.view(4, 3, 2)).conj().clone()
        return y * x + z.detach().real.sum()

    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    tape = Tape([x])
    with warnings.catch_warnings(), tape:
        warnings.simplefilter("ignore")
        out = function(x)
    tape.finish(out)
    u, d = torch.randn_like(out), torch.randn_like(x)
    (pulled,) = torch.autograd.grad(out, x, u)
    torch.testing.assert_close((u * tape.push([d])).sum(), (pulled * d).sum())
