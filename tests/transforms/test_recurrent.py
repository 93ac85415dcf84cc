"""torch.func and forward mode over models with recurrent layers, most of which PyTorch itself cannot transform."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, func, nn
from torch.autograd import forward_ad
from torch.testing import assert_close

from seqbatch import RNNState, SeqbatchValueError, SequenceBatch, encode, encode_with_state

Weights = dict[str, Tensor]
# Their types do not say that what comes back is shaped as what a function gives.
transforms: Any = func
functional_call, stack_module_state = transforms.functional_call, transforms.stack_module_state
grad, jacfwd, jacrev = transforms.grad, transforms.jacfwd, transforms.jacrev
jvp, vjp, vmap = transforms.jvp, transforms.vjp, transforms.vmap
LAYERS = [
    lambda: nn.LSTM(3, 4),
    lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
    lambda: nn.GRU(3, 4, num_layers=2, bidirectional=True),
    lambda: nn.GRU(3, 4, bias=False),
    lambda: nn.RNN(3, 4, bidirectional=True),
    lambda: nn.RNN(3, 4, nonlinearity="relu"),
]
every_layer = pytest.mark.parametrize("make", LAYERS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
all_lengths = pytest.mark.parametrize("lengths", [[3, 1, 4, 0], [2, 2], [1], [0, 0]])


class Model(nn.Module):
    """Pools what a recurrent layer gives, and adds what its state holds."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Sequential(nn.Tanh(), nn.LazyLinear(2))

    def forward(self, batch: SequenceBatch) -> Tensor:
        outputs, state = encode_with_state(self.layer, batch)
        last: Tensor = state.last()
        return encode(self.head, outputs).mean() + last.sum(1, keepdim=True)


def model_for(make: Any, dtype: torch.dtype) -> tuple[Model, Weights]:
    model = Model(make()).to(dtype)
    model(batch_of([2], dtype))
    return model, {name: weight.detach() for name, weight in model.named_parameters()}


def batch_of(lengths: list[int], dtype: torch.dtype) -> SequenceBatch:
    return SequenceBatch.from_sequences([torch.randn(length, 3, dtype=dtype) for length in lengths])


def loop(model: Model, weights: Weights, batch: SequenceBatch) -> Tensor:
    """Return the same, each sequence run alone."""
    return torch.cat([functional_call(model, weights, (batch[[i]],)) for i in range(len(batch))])


@every_layer
@every_dtype
@all_lengths
def test_gradients_of_functions(make: Any, dtype: torch.dtype, lengths: list[int]) -> None:
    model, weights = model_for(make, dtype)
    batch = batch_of(lengths, dtype)
    for weight in weights.values():
        weight.requires_grad_()
    wanted = torch.autograd.grad(loop(model, weights, batch).square().sum(), [*weights.values()])
    found = grad(lambda weights: functional_call(model, weights, (batch,)).square().sum())(weights)
    assert_close([*found.values()], [*wanted])
    outputs, pull = vjp(lambda weights: functional_call(model, weights, (batch,)), weights)
    assert_close([*pull(2 * outputs)[0].values()], [*wanted])


@every_layer
@every_dtype
@all_lengths
def test_forward_mode(make: Any, dtype: torch.dtype, lengths: list[int]) -> None:
    model, weights = model_for(make, dtype)
    batch = batch_of(lengths, dtype)
    tangents = {name: torch.randn_like(weight) for name, weight in weights.items()}

    def call(weights: Weights) -> Any:
        return functional_call(model, weights, (batch,))

    jacobian = jacrev(call)(weights)
    wanted = sum((jacobian[name] * tangents[name]).flatten(2).sum(2) for name in weights)
    outputs, found = jvp(call, (weights,), (tangents,))
    assert_close(found, wanted)
    assert_close(outputs, call(weights))
    with forward_ad.dual_level():
        dual = call({name: forward_ad.make_dual(weight, tangents[name]) for name, weight in weights.items()})
        assert_close(forward_ad.unpack_dual(dual).tangent, wanted)
    assert_close(jacfwd(call)(weights), jacobian)


@every_layer
@all_lengths
def test_ensembles(make: Any, lengths: list[int]) -> None:
    models = [model_for(make, torch.float32)[0] for _ in range(3)]
    batch = batch_of(lengths, torch.float32)
    weights, _ = stack_module_state(models)

    def call(weights: Weights, batch: SequenceBatch) -> Any:
        return functional_call(models[0], weights, (batch,))

    def loss(weights: Weights, batch: SequenceBatch) -> Any:
        return call(weights, batch).square().sum()

    wanted = torch.stack([model(batch) for model in models])
    assert_close(vmap(lambda weights: call(weights, batch))(weights), wanted.detach())
    found = vmap(lambda weights: grad(loss)(weights, batch))(weights)
    for i, model in enumerate(models):
        model(batch).square().sum().backward()
        for name, weight in model.named_parameters():
            assert_close(found[name][i], weight.grad)


@every_layer
def test_several_values_at_once(make: Any) -> None:
    model, _ = model_for(make, torch.float32)
    batch = batch_of([3, 1, 4, 0], torch.float32)
    values = torch.randn(5, *batch.values.shape)
    found = vmap(lambda values: model(batch.with_values(values)))(values)
    assert_close(found, torch.stack([model(batch.with_values(one)) for one in values]))


@pytest.mark.parametrize("how", ["first", "last", "reverse"])
def test_a_tangent_of_a_gradient(how: str) -> None:
    batch = batch_of([3, 0, 2], torch.float64)

    def loss(values: Tensor) -> Tensor:
        result = getattr(batch.with_values(values), how)()
        return ((result if isinstance(result, Tensor) else result.values) ** 3).sum()

    tangent = torch.randn_like(batch.values)
    _, found = jvp(grad(loss), (batch.values,), (tangent,))
    _, kept = jvp(grad(lambda values: (values**3).sum()), (batch.values,), (tangent,))
    assert_close(found[found != 0], kept[found != 0])
    assert (found != 0).any()


@every_layer
def test_one_batch_goes_through_nested_transforms_again_and_again(make: Any) -> None:
    model, _ = model_for(make, torch.float64)
    batch = batch_of([3, 1, 4, 0], torch.float64)

    def loss(values: Tensor) -> Any:
        return model(batch.with_values(values)).square().sum()

    hessian = transforms.hessian(loss)(batch.values)
    for again in (transforms.hessian(loss), jacrev(jacrev(loss)), jacrev(jacfwd(loss))):
        assert_close(again(batch.values), hessian)
    tangent = torch.randn_like(batch.values)
    assert_close(
        jvp(grad(loss), (batch.values,), (tangent,))[1], (hessian * tangent).flatten(2).sum(2).view_as(tangent)
    )
    (found,) = torch.autograd.grad(loss(values := batch.values.clone().requires_grad_()), values)
    assert_close(found, grad(loss)(batch.values))


BATCH, STATE = batch_of([3, 2], torch.float32), RNNState(torch.randn(2, 1, 2, 4))
PADDED = torch.randn(2, 3, 4)


@pytest.mark.parametrize(
    ("subject", "call", "given"),
    [
        ("lengths", lambda given: SequenceBatch(BATCH.values, given).sum(), torch.tensor([[3, 2], [4, 1]])),
        ("lengths", lambda given: SequenceBatch.from_padded(PADDED, given, batch_first=True), torch.ones(2, 2).int()),
        ("offsets", lambda given: SequenceBatch.from_offsets(BATCH.values, given), torch.tensor([[0, 3, 5]] * 2)),
        ("mask", lambda given: SequenceBatch.from_mask(PADDED, given, batch_first=True), torch.ones(2, 2, 3).bool()),
        ("index", lambda given: BATCH[given].values, torch.tensor([[0, 1], [1, 0]])),
        ("index", lambda given: STATE.reset(given).hidden, torch.tensor([[False, True]] * 2)),
    ],
)
def test_lengths_are_not_mapped_over(subject: str, call: Any, given: Tensor) -> None:
    said = (
        f"`{subject}` must be one for all that torch.func.vmap maps over; got a Tensor that it maps over. Pass "
        "in_dims=None for it, or join the samples to one batch, which needs no vmap."
    )

    def below(given: Tensor) -> Any:
        return grad(lambda _, given: call(given))(torch.ones(()), given)

    for function in (call, below, lambda given: vmap(call)(given[None])):
        with pytest.raises(SeqbatchValueError, match=f"^{re.escape(said)}$"):
            vmap(function)(given)


def test_lengths_that_are_not_mapped_over_may_be_a_tensor() -> None:
    values, lengths = torch.randn(2, 5, 3), torch.tensor([3, 2])
    found = vmap(lambda values, lengths: SequenceBatch(values, lengths).sum(), in_dims=(0, None))(values, lengths)
    assert_close(found, torch.stack([SequenceBatch(one, lengths).sum() for one in values]))


def test_a_batch_does_not_come_out_of_a_transform_as_another() -> None:
    batch, gru = batch_of([3, 2], torch.float64), nn.GRU(3, 4).double()

    def call(values: Tensor) -> Any:
        return encode(gru, batch.with_values(values))

    with pytest.raises(ValueError, match="`lengths` must add up to 5, the steps of `values`; got 0"):
        jvp(call, (batch.values,), (batch.values,))
    with pytest.raises((TypeError, RuntimeError)):
        vmap(call)(torch.stack([batch.values, batch.values]))
    with pytest.raises(ValueError, match=r"`hidden` must have shape \(num_layers, num_directions, batch, size\)"):
        vmap(lambda values: encode_with_state(gru, batch.with_values(values))[1])(torch.stack([batch.values] * 2))
