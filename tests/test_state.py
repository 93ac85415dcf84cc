"""RNNState, LSTMState and ContainerState: checks, the last step, saving and loading."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from laws import tensors_of
from states import container_state, every_state, lstm_state, rnn_state
from strategies import for_all_lengths, recurrent_layers, sequences
from torch import nn
from torch.testing import assert_close

from seqbatch import ContainerState, LSTMState, RNNState, SeqbatchTypeError, SeqbatchValueError, encode_with_state


@every_state
def test_batch_size(make_state: Callable[[int], Any]) -> None:
    assert make_state(3).batch_size == 3
    assert make_state(0).batch_size == 0


def test_a_container_without_states_has_no_sequences() -> None:
    assert ContainerState((None,)).batch_size == ContainerState(()).batch_size == 0


@pytest.mark.parametrize("name", ["last", "hidden", "cell", "to_torch"])
def test_what_a_container_lacks_is_named_where_it_is(name: str) -> None:
    state = container_state(3)
    with pytest.raises(SeqbatchTypeError) as caught:
        getattr(state, name)
    message = str(caught.value)
    must = f"`{name}` must be read from the state of one layer; got a seqbatch.ContainerState."
    assert message.startswith(f"{must} Use state.states[")
    wanted = [rnn_state(3), lstm_state(3)] if name != "cell" else [lstm_state(3)]
    advised = message.removeprefix(f"{must} Use ").removesuffix(".").split(" or ")
    assert [type(eval(one.removesuffix(f".{name}"), {"state": state})) for one in advised] == [*map(type, wanted)]
    assert not hasattr(state, name)
    for other in (ContainerState(()), ContainerState((None,))):
        with pytest.raises(AttributeError, match=rf"^'ContainerState' object has no attribute '{name}'$"):
            getattr(other, name)


def test_repr_shows_shapes_and_no_data() -> None:
    assert repr(rnn_state(3)) == "RNNState(3 sequences, 2 layers, 2 directions, size 4, torch.float64, cpu)"
    assert (
        repr(lstm_state(1)) == "LSTMState(1 sequence, 2 layers, 1 direction, size 4, cell size 5, torch.float64, cpu)"
    )
    assert repr(container_state(3)) == (
        "ContainerState(\n"
        "  (0): None\n"
        f"  (1): {rnn_state(3)!r}\n"
        "  (2): ContainerState(\n"
        f"    (0): {lstm_state(3)!r}\n"
        "    (1): None\n"
        "  )\n"
        ")"
    )
    assert repr(ContainerState(())) == "ContainerState()"
    assert repr(ContainerState((torch.zeros(2, 3),))) == "ContainerState(\n  (0): Tensor((2, 3), torch.float32, cpu)\n)"


def test_repr_shows_whether_gradients_are_recorded() -> None:
    hidden = torch.zeros(1, 1, 2, 3, requires_grad=True)
    shown = "LSTMState(2 sequences, 1 layer, 1 direction, size 3, torch.float32, cpu, requires_grad=True)"
    state = LSTMState(hidden.detach(), hidden)
    assert repr(state) == shown
    assert repr(state.detach()) == shown.replace(", requires_grad=True", "")


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
            r"`states` must have the same batch size; got \[2, 3\]\.",
        ),
        (lambda: RNNState(FOUR.long()), SeqbatchTypeError, r"`hidden` must be floating; got torch\.int64\."),
        (
            lambda: ContainerState(rnn_state(3)),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`states` must be a tuple of states and Nones; got a seqbatch\.RNNState\.",
        ),
    ],
)
def test_bad_construction(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_a_container_holds_states_of_any_kind() -> None:
    counts = torch.tensor([1, 2, 3])
    inner = ContainerState((counts,))
    state = ContainerState((counts, rnn_state(3), None, inner, {"any": "thing"}))
    assert state.batch_size == 3  # by those that say
    assert ContainerState((inner, counts)).batch_size == 0
    with pytest.raises(SeqbatchValueError, match=r"`states` must have the same batch size; got \[2, 3\]\."):
        ContainerState((inner, ContainerState((inner, rnn_state(2))), rnn_state(3)))
    moved = ContainerState((counts, rnn_state(3), inner)).to(torch.float32).detach()
    assert {part.dtype for part in tensors_of(moved)} == {torch.float32}
    for method in ("select", "reset", "__getitem__"):
        must = "reset" if method == "reset" else "select"
        for one, found in ((counts, r"a torch\.Tensor"), ({}, "a dict")):
            message = rf"`states\[1\]` must have batch_size and {must}, as RNNState; got {found}\."
            with pytest.raises(SeqbatchTypeError, match=message):
                getattr(ContainerState((rnn_state(3), one)), method)([0])
    for method in ("detach", "to"):
        message = rf"`states\[1\]` must have {method}, as RNNState; got a dict\."
        with pytest.raises(SeqbatchTypeError, match=message):
            getattr(ContainerState((rnn_state(3), {})), method)()


@pytest.mark.parametrize("method", ["detach", "to", "select", "reset"])
def test_what_a_state_in_a_container_in_a_container_lacks(method: str) -> None:
    state = ContainerState((rnn_state(3), ContainerState((None, ContainerState(({},))))))
    message = rf"`states\[1\]\.states\[1\]\.states\[0\]` must have .*{method}, as RNNState; got a dict\."
    with pytest.raises(SeqbatchTypeError, match=message):
        getattr(state, method)(*[[0]][: method in ("select", "reset")])


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
def test_casts_are_those_of_a_tensor(make_state: Callable[[int], Any]) -> None:
    state = make_state(3)
    for name in ("float", "double", "half", "bfloat16"):
        cast = getattr(state, name)()
        assert type(cast) is type(state)
        assert_close(tensors_of(cast), [getattr(part, name)() for part in tensors_of(state)], rtol=0, atol=0)


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
