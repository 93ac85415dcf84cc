"""The native engine where more than a plain backward pass is asked for, and where tensors have no memory to read."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from laws import tensors_of
from strategies import make, sequences, state_for
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.testing import assert_close
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

from seqbatch import SequenceBatch, encode, encode_with_state

every_kind = pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
every_layer = pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
LENGTHS = [3, 1, 2]


def in_chunks(layer: Any, xs: list[Tensor]) -> list[Tensor]:
    """Run a layer twice, the second time from the state of the first, which depends on the same weights and inputs."""
    first, state = encode_with_state(layer, xs)
    again, final = encode_with_state(layer, xs, state)
    return [*first, *again, *tensors_of(final)]


def alone_in_chunks(layer: Any, xs: list[Tensor]) -> list[Tensor]:
    """Return the same from PyTorch's own layer or cell, one sequence after another."""
    runs = [_run_alone(layer, x) for x in xs]
    ends = zip(*(end for _, _, end in runs), strict=True)
    return [*(run[0] for run in runs), *(run[1] for run in runs), *(torch.cat(parts, -2) for parts in ends)]


def _run_alone(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    state: Any = None
    outputs = []
    for _ in range(2):
        if isinstance(layer, nn.RNNBase):
            output, state = layer(x[:, None], state)
            outputs.append(output[:, 0])
            continue
        steps = []
        for step in x:
            state = layer(step[None], state)
            steps.append(state[0] if isinstance(state, tuple) else state)
        outputs.append(torch.cat(steps))
    parts = state if isinstance(state, tuple) else (state,)
    ends = tuple(part if part.dim() == 3 else part[None] for part in parts)
    return outputs[0], outputs[1], tuple(end[None] for end in ends)


def loss_of(results: list[Tensor]) -> Tensor:
    return torch.stack([(result * result.cos()).sum() for result in results]).sum()


@every_kind
def test_arguments_that_depend_on_each_other(kind: Any) -> None:
    """With `create_graph=True` the path through the state must not count twice."""
    layer = kind(3, 4, dtype=torch.float64)
    found = []
    for run in (in_chunks, alone_in_chunks):
        xs = sequences(LENGTHS, (3,))
        sources = [*xs, *layer.parameters()]
        plain = torch.autograd.grad(loss_of(run(layer, xs)), sources)
        firsts = torch.autograd.grad(loss_of(run(layer, xs)), sources, create_graph=True)
        assert_close(plain, tuple(first.detach() for first in firsts))
        found.append((*plain, *torch.autograd.grad(loss_of([*firsts]), sources)))
    assert_close(*found)


@every_kind
def test_many_gradients_at_once_of_arguments_that_depend_on_each_other(kind: Any) -> None:
    layer, xs = kind(3, 4, dtype=torch.float64), sequences(LENGTHS, (3,))
    sources = [*xs, *layer.parameters()]
    output = in_chunks(layer, xs)[3]
    weights = make((2, *output.shape), torch.float64)
    found = torch.autograd.grad(output, sources, weights, is_grads_batched=True, retain_graph=True, allow_unused=True)
    for i, weight in enumerate(weights):
        wanted = torch.autograd.grad(output, sources, weight, retain_graph=True, allow_unused=True)
        assert_close([part if part is None else part[i] for part in found], [*wanted])


@every_layer
def test_vmap_over_gradients(kind: Any) -> None:
    layer, xs = kind(3, 4, dtype=torch.float64), sequences([3], (3,))
    output = encode(layer, xs)[0]

    def gradient(weight: Tensor) -> Tensor:
        return torch.autograd.grad(output, xs[0], weight, retain_graph=True)[0]

    weights = make((5, *output.shape), torch.float64)
    assert_close(torch.func.vmap(gradient)(weights), torch.stack([gradient(weight) for weight in weights]))


def held(tensor: Tensor) -> Tensor:
    """Return what a TwoTensor wraps, and any other tensor as it is."""
    wrapped: Tensor = getattr(tensor, "a", tensor)
    return wrapped


def turned(saved: Tensor) -> Tensor:
    """Return a Tensor with the same values that is not contiguous."""
    return saved.t().contiguous().t() if saved.dim() == 2 else saved


HOOKS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "not contiguous": (lambda saved: saved, turned),
    "double": (lambda saved: saved.double(), lambda saved: saved),
    "subclass": (lambda saved: TwoTensor(saved, saved), lambda saved: saved),
}


@every_kind
@pytest.mark.parametrize("how", HOOKS)
def test_what_hooks_of_saved_tensors_return(how: str, kind: Any) -> None:
    layer = kind(3, 4)
    xs = sequences(LENGTHS, (3,), torch.float32)
    sources = [*xs, *layer.parameters()]
    wanted = torch.autograd.grad(loss_of(in_chunks(layer, xs)), sources)
    with torch.autograd.graph.saved_tensors_hooks(*HOOKS[how]):
        results = in_chunks(layer, xs)
    found = torch.autograd.grad(loss_of(results), sources)
    assert_close([held(part) for part in found], [*wanted])
    assert not any(part.requires_grad for part in found)


@every_kind
def test_a_state_that_is_a_subclass(kind: Any) -> None:
    """A wrapper has no memory of its own: its address is 0, as if there were no state."""
    layer, xs = kind(3, 4).requires_grad_(False), sequences(LENGTHS, (3,), torch.float32)
    state = state_for(layer, len(xs)).to(torch.float32).detach()
    wanted, final = encode_with_state(layer, xs, state)
    wrapped = type(state)(*(TwoTensor(part, part) for part in tensors_of(state)))
    outputs, ends = encode_with_state(layer, xs, wrapped)
    assert_close([held(output) for output in outputs], [*wanted])
    assert_close([held(end) for end in tensors_of(ends)], tensors_of(final))


@every_kind
def test_gradients_that_are_a_subclass(kind: Any) -> None:
    layer, xs = kind(3, 4), sequences(LENGTHS, (3,), torch.float32)
    batch = SequenceBatch.from_sequences(xs)
    output = encode(layer, batch).values
    weight = torch.randn_like(output)
    wanted = torch.autograd.grad(output, xs, weight, retain_graph=True)
    found = torch.autograd.grad(output, xs, TwoTensor(weight, weight))
    assert_close([held(part) for part in found], [*wanted])


@every_kind
def test_values_with_the_bit_of_negation(kind: Any) -> None:
    layer = kind(1, 2)
    values = torch.complex(torch.ones(1, 1), torch.ones(1, 1)).conj().imag
    assert values.is_neg()
    found = encode(layer, SequenceBatch(values, [1])).values
    assert_close(found, encode(layer, SequenceBatch(values.clone(), [1])).values)


@every_kind
def test_fake_tensors_made_of_real_ones(kind: Any) -> None:
    layer, batch = kind(3, 4), SequenceBatch(torch.randn(6, 3), LENGTHS)
    with FakeTensorMode(allow_non_fake_inputs=True):
        output, state = encode_with_state(layer, batch)
    assert output.values.shape == (6, 4)
    assert [part.shape for part in tensors_of(state)] == [(1, 1, 3, 4)] * len(tensors_of(state))
    # Nothing of the mode is kept in the structure of the batch.
    assert_close(encode(layer, batch).values, encode(layer, SequenceBatch(batch.values, LENGTHS)).values)


@every_kind
def test_dispatch_modes_see_the_operations(kind: Any) -> None:
    layer, batch = kind(3, 4), SequenceBatch(torch.randn(6, 3), LENGTHS)
    with FlopCounterMode(display=False) as counter:
        encode(layer, batch)
    gates = len(layer.get_parameter(next(name for name, _ in layer.named_parameters()))) // 4
    assert counter.get_total_flops() == 2 * 6 * gates * 4 * (3 + 4)
