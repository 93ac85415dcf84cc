"""Recurrent layers that are frozen, subclassed, parametrized or cast, and batches without steps."""

from typing import Any

import laws
import pytest
import torch
from strategies import sequences, state_for
from torch import nn
from torch.testing import assert_close

from seqbatch import LSTMState, RNNState, SeqbatchValueError, SequenceBatch, encode, encode_with_state


def test_gradients_of_an_empty_batch_are_zero() -> None:
    lstm = nn.LSTM(5, 3)
    x = torch.zeros(0, 5, requires_grad=True)
    encode(lstm, [x])[0].sum().backward()
    assert x.grad is not None
    assert all(weight.grad is not None and not weight.grad.any() for weight in lstm.parameters())


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_gradients_from_the_state_of_an_empty_batch_are_zero(kind: Any, stateful: bool) -> None:
    layer = kind(5, 3, num_layers=2, bidirectional=True, dtype=torch.float64)
    start = state_for(layer, 2) if stateful else None
    _, state = encode_with_state(layer, [torch.zeros(0, 5, dtype=torch.float64)] * 2, start)
    assert_close(state.last(), state_for(layer, 2).last() if stateful else torch.zeros(2, 6, dtype=torch.float64))
    state.last().sum().backward()
    assert [name for name, weight in layer.named_parameters() if weight.grad is None or weight.grad.any()] == []
    if start is not None:
        wanted = torch.zeros_like(start.hidden)
        wanted[-1] = 1
        assert_close(start.hidden.grad, wanted)


def test_gradients_of_a_sequential_without_any_step_are_zero() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.LSTM(4, 3), nn.LayerNorm(3))
    outputs, state = encode_with_state(model, [torch.zeros(0, 5)] * 2)
    (outputs[0].sum() + state.states[1].last().sum()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or weight.grad.any()] == []


def test_frozen_weights_stay_frozen() -> None:
    lstm = nn.LSTM(5, 3).requires_grad_(False)
    assert not encode(lstm, [torch.zeros(0, 5)])[0].requires_grad
    assert not encode(lstm, [torch.zeros(2, 5)])[0].requires_grad


def test_subclass_with_its_own_forward_is_called() -> None:
    class Doubled(nn.LSTM):
        def forward(self, input: Any, hx: Any = None) -> Any:
            output, state = super().forward(input, hx)
            return 2 * output, state

    lstm = Doubled(5, 3)
    x = torch.randn(4, 5)
    assert_close(encode(lstm, [x, x[:2]])[0], 2 * nn.LSTM.forward(lstm, x)[0])


def test_a_subclass_that_returns_something_else_is_refused() -> None:
    class Last(nn.LSTM):
        def forward(self, input: Any, hx: Any = None) -> Any:
            return super().forward(input, hx)[1][0]

    message = r"`layer` must return a Tensor and a state .*; got a torch.Tensor. Register an encoder for Last, by @reg"
    with pytest.raises(TypeError, match=message):
        encode(Last(5, 3), [torch.zeros(2, 5)])


def test_parametrized_layer_works_as_itself() -> None:
    lstm = nn.LSTM(5, 3)
    nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l0")
    laws.check_alone(lstm, sequences([3, 0, 5], (5,), torch.float32))


def test_a_pre_hook_may_convert_the_input() -> None:
    lstm = nn.LSTM(5, 3)

    def widen(module: nn.Module, args: Any) -> Any:
        packed = args[0]
        return (nn.utils.rnn.PackedSequence(packed.data.float(), *packed[1:]), *args[1:])

    lstm.register_forward_pre_hook(widen)
    x = torch.randn(4, 5, dtype=torch.float64)
    assert_close(encode(lstm, [x, x[:1]])[0], nn.LSTM.forward(lstm, x.float())[0])


def test_autocast_converts_the_dtype() -> None:
    gru = nn.GRU(5, 3)
    xs = [torch.randn(4, 5), torch.randn(0, 5), torch.randn(2, 5)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, state = encode_with_state(gru, xs)
        alone, end = gru(xs[0])
    assert_close(outputs[0], alone)
    assert_close(state.hidden[:, 0, 0], end)


@pytest.mark.parametrize("start", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_autocast_of_a_state_has_the_dtypes_of_one_sequence_alone(kind: Any, given: Any, start: Any) -> None:
    layer, cells = kind(5, 3), kind is nn.LSTM
    xs = [torch.randn(4, 5, dtype=given), torch.randn(2, 5, dtype=given)]
    zeros = torch.zeros(1, 1, 2, 3, dtype=start)
    hx = (zeros[0, :, 0],) * 2 if cells else zeros[0, :, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, state = encode_with_state(layer, xs, LSTMState(zeros, zeros) if cells else RNNState(zeros))
        alone, end = layer(xs[0], hx)
    assert_close(outputs[0], alone, rtol=0.03, atol=0.03)  # half precision rounds in another order
    assert_close([part[:, 0, 0] for part in state._parts], [*end] if cells else [end], rtol=0.03, atol=0.03)


@pytest.mark.parametrize("layer", [nn.LSTM(5, 3), nn.GRU(5, 3, bidirectional=True), nn.RNN(5, 3), nn.Linear(5, 3)])
def test_autocast_does_not_convert_double_precision(layer: nn.Module) -> None:
    xs = [torch.zeros(4, 5, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float64)]
    message = r"`sequences` must have dtype torch\.float32, as the weights of \w+\(.*\); got torch\.float64\."
    with torch.autocast("cpu", dtype=torch.bfloat16):
        laws.check_refused(layer, xs, SeqbatchValueError, message)
        laws.check_refused(layer, [x.long() for x in xs], SeqbatchValueError, message.replace("float64", "int64"))


def test_autocast_converts_the_dtype_of_states_but_not_double_precision() -> None:
    lstm = nn.LSTM(5, 3)
    for weight in lstm.parameters():
        nn.init.zeros_(weight)  # so that all but the state is 0, and half precision rounds alike in every kernel
    xs = [torch.zeros(4, 5), torch.zeros(2, 5)]
    state = LSTMState(torch.zeros(1, 1, 2, 3), torch.ones(1, 1, 2, 3))
    message = r"`state\.hidden` must have dtype torch\.float32, for 2 sequences and LSTM\(5, 3\); got torch\.float64"
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        laws.check_alone(lstm, xs, state.to(torch.bfloat16))
        assert encode_with_state(lstm, xs, state.to(torch.bfloat16))[0][0].any()
        laws.check_refused(lstm, xs, SeqbatchValueError, message, state.to(torch.float64))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(0, 7), r"`sequences` must have features \(3,\), for LSTM\(3, 2\); got \(7,\)\."),
        (torch.zeros(0, 2, 3), r"`sequences` must have features \(3,\), for LSTM\(3, 2\); got \(2, 3\)\."),
        (torch.zeros(0, dtype=torch.int64), r"`sequences` must have features \(3,\), for LSTM\(3, 2\); got \(\)\."),
        (torch.zeros(0, 3).double(), r"`sequences` must have dtype torch\.float32, as the weights of LSTM\(3, 2\)"),
        (torch.zeros(0, 3).to("meta"), r"`sequences` must be on cpu, as the weights of LSTM\(3, 2\); got meta\."),
    ],
)
def test_a_batch_of_no_sequences_is_checked_too(values: torch.Tensor, message: str) -> None:
    laws.check_refused(nn.LSTM(3, 2), SequenceBatch(values, []), SeqbatchValueError, message)


def test_a_batch_of_no_sequences_that_fits_passes() -> None:
    outputs = encode(nn.LSTM(3, 2), SequenceBatch(torch.zeros(0, 3), []))
    assert (outputs.lengths, outputs.feature_shape) == ((), (2,))
