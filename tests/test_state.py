"""RNNState, LSTMState and ContainerState: checks, PyTorch's layout, the last step, saving and loading."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from laws import tensors_of
from strategies import for_all_lengths, make, recurrent_layers, sequences, state_for
from torch import nn
from torch.testing import assert_close

from seqbatch import (
    ContainerState,
    LSTMState,
    RNNState,
    SeqbatchTypeError,
    SeqbatchValueError,
    encode_with_state,
)


def rnn_state(batch: int) -> RNNState:
    return RNNState(make((2, 2, batch, 4), torch.float64))


def lstm_state(batch: int) -> LSTMState:
    return LSTMState(make((2, 1, batch, 4), torch.float64), make((2, 1, batch, 5), torch.float64, seed=1))


def container_state(batch: int) -> ContainerState:
    return ContainerState((None, rnn_state(batch), ContainerState((lstm_state(batch), None))))


MAKERS: list[Callable[[int], Any]] = [rnn_state, lstm_state, container_state]
every_state = pytest.mark.parametrize("make_state", MAKERS)


@every_state
def test_batch_size(make_state: Callable[[int], Any]) -> None:
    assert make_state(3).batch_size == 3
    assert make_state(0).batch_size == 0


def test_a_container_without_states_has_no_sequences() -> None:
    assert ContainerState((None,)).batch_size == ContainerState(()).batch_size == 0


def test_repr_shows_shapes_and_no_data() -> None:
    assert repr(rnn_state(3)) == "RNNState(3 sequences, 2 layers, 2 directions, size 4, torch.float64, cpu)"
    assert repr(lstm_state(1)) == "LSTMState(1 sequence, 2 layers, 1 direction, size 4+5, torch.float64, cpu)"
    inside = f"ContainerState(states=({lstm_state(3)!r}, None))"
    assert repr(container_state(3)) == f"ContainerState(states=(None, {rnn_state(3)!r}, {inside}))"


FOUR = torch.zeros(2, 1, 3, 4)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: RNNState([1.0]), SeqbatchTypeError, r"`hidden` must be a Tensor; got a list\. Make it one by torch"),  # type: ignore[arg-type]  # wrong
        (
            lambda: RNNState(FOUR[0]),
            SeqbatchValueError,
            r"`hidden` must have shape \(num_layers, num_directions, batch, size\); got \(1, 3, 4\)\. Call from_torch",
        ),
        (lambda: LSTMState(FOUR, None), SeqbatchTypeError, r"`cell` must be a Tensor; got None\."),  # type: ignore[arg-type]  # wrong
        (lambda: LSTMState(FOUR, FOUR[0]), SeqbatchValueError, r"`cell` must have shape \(num_layers, .*; got \(1, 3"),
        (
            lambda: LSTMState(FOUR, torch.zeros(2, 1, 2, 4)),
            SeqbatchValueError,
            r"`cell` must have layers, directions and batch \(2, 1, 3\), as `hidden`; got \(2, 1, 2\)\.",
        ),
        (
            lambda: LSTMState(FOUR, FOUR.double()),
            SeqbatchValueError,
            r"`cell` must have dtype torch\.float32, as `hidden`; got torch\.float64\.",
        ),
        (
            lambda: LSTMState(FOUR, FOUR.to("meta")),
            SeqbatchValueError,
            r"`cell` must have device cpu, as `hidden`; got meta\.",
        ),
        (
            lambda: ContainerState((rnn_state(3), None, lstm_state(2))),
            SeqbatchValueError,
            r"`states` must be of one number of sequences; got \[2, 3\]\.",
        ),
        (lambda: RNNState(FOUR.long()), SeqbatchTypeError, r"`hidden` must be floating; got torch\.int64\."),
        (
            lambda: ContainerState(rnn_state(3)),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`states` must be a tuple of states and Nones; got a seqbatch\.state\.RNNState\.",
        ),
        (
            lambda: ContainerState((None, FOUR)).reset([]),
            SeqbatchTypeError,
            r"`states\[1\]` must have batch_size and reset, as RNNState; got a torch\.Tensor\.",
        ),
    ],
)
def test_bad_construction(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


@every_state
def test_it_cannot_be_changed_and_is_compared_by_identity(make_state: Callable[[int], Any]) -> None:
    state = make_state(3)
    for name in ("hidden", "cell", "states", "other"):
        with pytest.raises(AttributeError):
            setattr(state, name, None)
    assert state == state
    assert state != copy.copy(state)
    assert len({state, copy.copy(state)}) == 2


@every_state
def test_it_can_be_neither_iterated_nor_unpacked(make_state: Callable[[int], Any]) -> None:
    message = r"`state` must not be iterated or unpacked; got \w+State\. Its parts are attributes, and state\[i\] is"
    for take in (list, tuple, lambda state: [*state]):
        with pytest.raises(SeqbatchTypeError, match=message):
            take(make_state(2))
    with pytest.raises(SeqbatchTypeError, match=message):
        _hidden, _cell = make_state(2)


@every_state
def test_detach_shares_the_values_and_drops_the_graph(make_state: Callable[[int], Any]) -> None:
    state = make_state(3)
    for part in tensors_of(state):
        part.requires_grad_()
    detached = state.detach()
    assert type(detached) is type(state)
    for part, old in zip(tensors_of(detached), tensors_of(state), strict=True):
        assert not part.requires_grad
        assert part.data_ptr() == old.data_ptr()
        assert old.requires_grad


@every_state
def test_to_converts_dtype_and_device(make_state: Callable[[int], Any]) -> None:
    state = make_state(3)
    assert {part.dtype for part in tensors_of(state.to(torch.float32))} == {torch.float32}
    assert {part.device.type for part in tensors_of(state.to(device="meta"))} == {"meta"}
    assert {(part.dtype, part.device.type) for part in tensors_of(state)} == {(torch.float64, "cpu")}


@for_all_lengths(layer=recurrent_layers())
def test_last_joins_forward_at_the_last_step_to_backward_at_the_first(lengths: list[int], layer: nn.RNNBase) -> None:
    xs = sequences(lengths, (layer.input_size,))
    outputs, state = encode_with_state(layer, xs)
    size = layer.proj_size or layer.hidden_size
    wanted = [
        torch.cat([x[-1, :size], x[0, size:]]) if len(x) else torch.zeros(x.shape[1], dtype=x.dtype) for x in outputs
    ]
    assert_close(list(state.last()), wanted)


@for_all_lengths(layer=recurrent_layers())
def test_pytorchs_layout_and_back_are_views(lengths: list[int], layer: nn.RNNBase) -> None:
    state = state_for(layer, len(lengths))
    hx = state.to_torch()
    back = type(state).from_torch(hx, layer)  # type: ignore[arg-type]  # each by its own kind
    parts = hx if isinstance(hx, tuple) else (hx,)
    directions = 2 if layer.bidirectional else 1
    for part, old, new in zip(parts, tensors_of(state), tensors_of(back), strict=True):
        assert part.shape == (layer.num_layers * directions, len(lengths), old.shape[3])
        assert part.data_ptr() == old.data_ptr() == new.data_ptr()
        assert_close(new, old)
    if lengths:
        steps = make((1, len(lengths), layer.input_size), torch.float64)
        layer(steps.transpose(0, 1) if layer.batch_first else steps, hx)  # PyTorch takes it


def test_pytorchs_layout_goes_by_layer_then_direction() -> None:
    layer = nn.GRU(5, 3, num_layers=2, bidirectional=True)
    _, hx = layer(torch.randn(7, 4, 5))
    state = RNNState.from_torch(hx, layer)
    for i in range(2):
        for direction in range(2):
            assert_close(state.hidden[i, direction], hx[2 * i + direction])


PAIR = (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: LSTMState.from_torch(PAIR[0], nn.LSTM(5, 4, 2)),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`hx` must be a pair \(hidden, cell\) of Tensors; got a torch\.Tensor\.",
        ),
        (
            lambda: LSTMState.from_torch((*PAIR, PAIR[0]), nn.LSTM(5, 4, 2)),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`hx` must be a pair \(hidden, cell\) of Tensors; got a tuple\.",
        ),
        (
            lambda: LSTMState.from_torch((PAIR[0], [0.0]), nn.LSTM(5, 4, 2)),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`hx\[1\]` must be a Tensor; got a list\.",
        ),
        (
            lambda: LSTMState.from_torch((PAIR[0], PAIR[1][:1]), nn.LSTM(5, 4, 2)),
            SeqbatchValueError,
            r"`hx\[1\]` must have shape \(2, batch, 4\), 2 layers x 1 direction; got \(1, 3, 4\)\.",
        ),
        (
            lambda: RNNState.from_torch(PAIR, nn.GRU(5, 4, 2)),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`hx` must be a Tensor; got a tuple\.",
        ),
        (
            lambda: RNNState.from_torch(PAIR[0], nn.GRU(5, 4, 2, bidirectional=True)),
            SeqbatchValueError,
            r"`hx` must have shape \(4, batch, 4\), 2 layers x 2 directions; got \(2, 3, 4\)\.",
        ),
        (
            lambda: RNNState.from_torch(PAIR[0][0], nn.GRU(5, 4, 2)),
            SeqbatchValueError,
            r"`hx` must have shape \(2, batch, 4\), 2 layers x 1 direction; got \(3, 4\)\.",
        ),
        (
            lambda: RNNState.from_torch(PAIR[0], nn.Linear(5, 4)),
            SeqbatchTypeError,
            r"`layer` must be a layer of PyTorch of mode GRU or RNN_TANH or RNN_RELU; got a torch",
        ),
    ],
)
def test_bad_layouts_of_pytorch(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def saved_and_loaded(thing: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("way", [saved_and_loaded, lambda it: pickle.loads(pickle.dumps(it)), copy.deepcopy, copy.copy])
@every_state
def test_it_is_given_back_as_it_was(make_state: Callable[[int], Any], way: Callable[[Any], Any]) -> None:
    state = make_state(3)
    tensors_of(state)[0].requires_grad_()
    back = way({"state": state})["state"]
    assert type(back) is type(state)
    assert_close(tensors_of(back), tensors_of(state))
    assert [part.requires_grad for part in tensors_of(back)] == [part.requires_grad for part in tensors_of(state)]
    assert repr(back) == repr(state)
