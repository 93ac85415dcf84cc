"""Recurrent layers with a `forward` of their own, of a class or an instance: called on Tensors of equal length."""

import functools
from typing import Any

import laws
import pytest
import torch
from strategies import sequences
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import LSTMState, SeqbatchTypeError, SeqbatchValueError, encode, encode_with_state
from seqbatch.testing import check_encoder

PATTERNS = [[3, 3, 3], [4, 2, 1], [1, 4, 4, 2], [0, 3, 0, 1], [1, 1], [0, 0], [5]]
every_pattern = pytest.mark.parametrize("lengths", PATTERNS, ids=str)


class WithNoise(nn.LSTM):
    """Makes its own state where it is given none, as many public models do, by what only a Tensor has."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        if hx is None:
            axis = 0 if self.batch_first else 1
            rows = self.num_layers * (2 if self.bidirectional else 1)
            hx = (input.new_zeros(rows, input.shape[axis], self.hidden_size),) * 2
        output, state = super().forward(torch.tanh(input) + input.new_ones(input.shape[2]), hx)
        return torch.relu(output), state


class AddsPosition(nn.GRU):
    """Adds the position of each step, which a PackedSequence does not have."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        axis = 1 if self.batch_first else 0
        steps = torch.arange(input.shape[axis], dtype=input.dtype)
        return super().forward(input + (steps[None, :, None] if self.batch_first else steps[:, None, None]), hx)


@every_pattern
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one", "deep"])
def test_each_sequence_gets_what_it_gets_alone(lengths: list[int], batch_first: bool, options: Any) -> None:
    for kind in (WithNoise, AddsPosition):
        layer = kind(2, 3, batch_first=batch_first, dtype=torch.float64, **options)
        xs = [x.requires_grad_() for x in sequences(lengths, (2,))]
        outputs, state = encode_with_state(layer, xs)
        assert [len(x) for x in encode(layer, xs)] == lengths
        sources = [*xs, *layer.parameters()]
        for i, x in enumerate(xs):
            if not len(x):
                assert not state[i].hidden.any()
                continue
            output, end = layer(x[None] if batch_first else x[:, None])
            assert_close(outputs[i], output.squeeze(0 if batch_first else 1))
            assert_close(state[i].to_torch(), end)
            found, wanted = (
                torch.autograd.grad(one.sin().sum(), sources, retain_graph=True, materialize_grads=True)
                for one in (outputs[i], output)
            )
            assert_close(found, wanted)


def test_a_state_goes_in_and_comes_out() -> None:
    layer, xs = WithNoise(2, 3, dtype=torch.float64), sequences([4, 0, 2, 4], (2,))
    whole, end = encode_with_state(layer, xs)
    first, state = encode_with_state(layer, [x[:1] for x in xs])
    second, final = encode_with_state(layer, [x[1:] for x in xs], state)
    assert_close([torch.cat(parts) for parts in zip(first, second, strict=True)], whole)
    assert isinstance(final, LSTMState)
    assert_close(final.to_torch(), end.to_torch())


def test_a_forward_set_on_an_instance_is_called_on_tensors_too() -> None:
    layer, xs = nn.LSTM(2, 3, dtype=torch.float64), sequences([3, 1, 3], (2,))
    wanted = encode(layer, [x.flip(1) for x in xs])
    plain = layer.forward
    layer.forward = lambda values, *rest: plain(values.flip(-1), *rest)  # type: ignore[method-assign]  # as libraries do
    assert_close(encode(layer, xs), wanted)
    laws.check_alone(layer, xs)


def test_hooks_of_such_a_layer_run_once_for_each_length() -> None:
    layer, seen = WithNoise(2, 3), []
    layer.register_forward_hook(lambda module, given, result: seen.append(tuple(given[0].shape)))
    encode(layer, [torch.zeros(n, 2) for n in (3, 1, 3, 0)])
    assert seen == [(3, 2, 2), (1, 1, 2)]


@pytest.mark.slow
def test_such_a_layer_obeys_the_laws() -> None:
    def alone(layer: nn.Module, sequence: Tensor, state: Any) -> Any:
        output, end = layer(sequence[:, None], None if state is None else state.to_torch())
        return output[:, 0], LSTMState.from_torch(end, layer)

    check_encoder(WithNoise(2, 3), features=(2,), alone=alone)


class PackedOnly(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input._replace(data=2 * input.data), hx)


class TakesNoState(nn.GRU):
    def forward(self, input: Any) -> Any:  # type: ignore[override]  # what is wrong with it
        return super().forward(input)


class GivesLastStep(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        output, state = super().forward(input, hx)
        return output[-1], state


class Projects(nn.GRU):
    def forward(self, input: Any, hx: Any = None) -> Any:
        output, state = super().forward(input, hx)
        return output[..., :1], state


class DropsState(nn.RNN):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx)[0], None


class OneOfTwo(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        output, (hidden, _) = super().forward(input, hx)
        return output, hidden


REGISTER = r" Register an encoder for {0}, by @register_recurrent\({0}\)\."
WHY = "The layer was called on a Tensor, not on a PackedSequence, because its forward is its own."


@pytest.mark.parametrize("lengths", [[3, 3], [3, 1, 0]], ids=str)
@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (
            PackedOnly,
            SeqbatchTypeError,
            r"run on Tensors of equal length in the forward of PackedOnly, as its base does; got AttributeError.*\)\.",
        ),
        (
            GivesLastStep,
            SeqbatchValueError,
            r"return an output and a state of shapes \[\(3, .*; got \[\(\d, 4\), \(1, .*\]\.",
        ),
        (
            Projects,
            SeqbatchValueError,
            r"return an output and a state of shapes \[\(3, \d, 4\), .*; got \[\(3, \d, 1\), .*\]\.",
        ),
        (
            DropsState,
            SeqbatchValueError,
            r"return an output and a state of shapes .*, as its base does; got \[.*'None'\]\.",
        ),
        (OneOfTwo, SeqbatchValueError, r"return an output and a state of shapes .*, as its base does; got \[.*\]\."),
    ],
)
def test_what_such_a_forward_does_otherwise_is_an_error_of_ours(
    kind: Any, error: type[Exception], message: str, lengths: list[int]
) -> None:
    xs = [torch.ones(n, 2) for n in lengths]
    for call in (encode, encode_with_state):
        with pytest.raises(error, match=rf"^`layer` must {message}" + REGISTER.format(kind.__name__)) as caught:
            call(kind(2, 4), xs)
        assert caught.value.__notes__[0] == (WHY if error is SeqbatchValueError else caught.value.__notes__[-1])


def test_a_state_for_a_layer_that_takes_none() -> None:
    layer, xs = TakesNoState(2, 4), [torch.ones(3, 2), torch.ones(1, 2)]
    _, state = encode_with_state(layer, xs)
    message = r"^`layer` must run on Tensors .* forward of TakesNoState, as its base does; got TypeError\(.*"
    with pytest.raises(SeqbatchTypeError, match=message + REGISTER.format("TakesNoState")) as caught:
        encode_with_state(layer, xs, state)
    assert isinstance(caught.value.__cause__, TypeError)


class OddError(Exception):
    pass


@pytest.mark.parametrize(
    "raised",
    [
        OddError("odd"),
        ValueError("a rule of this layer"),
        AssertionError("a rule of this layer"),
        StopIteration(3),
        KeyError("a name"),
        NotImplementedError("not yet"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: no memory"),
    ],
    ids=repr,
)
def test_what_is_not_about_its_input_stays_as_it_is(raised: Exception) -> None:
    class Raises(nn.LSTM):
        def forward(self, input: Any, hx: Any = None) -> Any:
            raise raised

    with pytest.raises(type(raised)) as caught:
        encode(Raises(2, 3), [torch.ones(3, 2)])
    assert caught.value is raised
    assert caught.value.__notes__[0] == WHY


def test_layers_that_libraries_patch_are_called_once_for_all() -> None:
    xs, seen = [torch.ones(n, 2) for n in (3, 1, 2)], []

    def watched(layer: nn.Module) -> nn.Module:
        layer.register_forward_hook(lambda module, given, result: seen.append(type(given[0]).__name__))
        return layer

    normed = nn.LSTM(2, 3)
    nn.utils.parametrizations.weight_norm(normed, "weight_hh_l0")
    spectral = nn.utils.spectral_norm(nn.LSTM(2, 3), "weight_hh_l0")
    inherits = type("Sharded", (nn.LSTM,), {})(2, 3)  # as fully_shard makes a class
    rebound = nn.LSTM(2, 3)
    rebound.forward = rebound.forward  # type: ignore[method-assign]  # as libraries that undo their patch do
    wrapped: Any = nn.LSTM(2, 3)
    wrapped._old_forward = wrapped.forward  # as accelerate does
    wrapped.forward = functools.partial(lambda layer, *given: layer._old_forward(*given), wrapped)
    for layer in (normed, spectral, inherits, rebound, wrapped):
        encode(watched(layer), xs)
    assert seen == ["PackedSequence"] * 5


@pytest.mark.parametrize("lengths", [[3, 3], [3, 1, 2]], ids=str)
def test_hooks_of_a_stock_layer_may_widen_its_outputs(lengths: list[int]) -> None:
    layer = nn.GRU(2, 3, dtype=torch.float64)
    gradients: list[tuple[int, ...]] = []

    def record(module: nn.Module, given: Any, result: Any) -> None:
        gradients.append(tuple(result[0].shape))

    layer.register_forward_hook(lambda module, given, result: (torch.cat([result[0]] * 2, -1), result[1]))
    layer.register_full_backward_hook(record)
    xs = [x.requires_grad_() for x in sequences(lengths, (2,))]
    outputs = encode(layer, xs)
    assert_close(outputs, [layer(x[:, None])[0].squeeze(1) for x in xs])
    torch.cat(outputs).sum().backward()
    assert sorted(gradients) == sorted((length, lengths.count(length), 6) for length in {*lengths})


SUBCLASS = (
    r" Make it a subclass of GRU whose forward does this, and register an encoder for that subclass, by "
    r"@register_recurrent\.(\n|$)"
)


@pytest.mark.parametrize("lengths", [[3, 3], [3, 1, 0]], ids=str)
def test_no_advice_replaces_the_encoder_of_every_layer_of_a_stock_class(lengths: list[int]) -> None:
    xs = [torch.ones(n, 2) for n in lengths]

    def shortens(layer: Any) -> None:
        plain = layer.forward
        layer.forward = lambda *given: (plain(*given)[0][..., :1], plain(*given)[1])

    def fails(layer: Any) -> None:
        layer.forward = lambda *given: given[0].data_of_packed

    def drops_state(layer: nn.GRU) -> None:
        layer.register_forward_hook(lambda module, given, result: result[0])

    for change in (shortens, fails, drops_state):
        layer = nn.GRU(2, 4)
        change(layer)
        with pytest.raises((SeqbatchTypeError, SeqbatchValueError), match=r"(?s)^`layer` must .*" + SUBCLASS):
            encode_with_state(layer, xs)
