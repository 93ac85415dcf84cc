"""Every law for nn.Sequential, with and without recurrent layers inside, and the states of those."""

from typing import Any

import laws
import pytest
import torch
from hypothesis import strategies as st
from strategies import for_all_lengths, sequences, state_for
from torch import nn
from torch.testing import assert_close

from seqbatch import (
    ContainerState,
    SeqbatchTypeError,
    SeqbatchValueError,
    SequenceBatch,
    UnsupportedLayerError,
    encode,
    encode_with_state,
    is_recurrent,
    register_recurrent,
)
from seqbatch.layers import Residual, TwoWay


def models() -> st.SearchStrategy[nn.Sequential]:
    def build(bidirectional: bool, nested: bool, between: nn.Module) -> nn.Sequential:
        laws.seed(0)
        lstm = nn.LSTM(3, 2, bidirectional=bidirectional)
        gru = nn.GRU(4 if bidirectional else 2, 3)
        inner = [nn.Sequential(between, gru)] if nested else [between, gru]
        return nn.Sequential(nn.Linear(2, 3), lstm, *inner, nn.ReLU(inplace=True)).double()

    between = st.sampled_from([nn.Tanh(), nn.Identity(), nn.Sequential(), nn.Sequential(nn.Sigmoid())])
    return st.builds(build, st.booleans(), st.booleans(), between)


def start(model: nn.Module, batch: int) -> Any:
    if isinstance(model, nn.Sequential):
        parts = [start(child, batch) for child in model]
        return ContainerState(tuple(parts)) if any(part is not None for part in parts) else None
    return state_for(model, batch) if isinstance(model, nn.RNNBase) else None


@for_all_lengths(model=models(), stateful=st.booleans())
def test_alone(lengths: list[int], model: nn.Sequential, stateful: bool) -> None:
    xs = sequences(lengths, (2,))
    laws.check_alone(model, xs, start(model, len(xs)) if stateful else None)


@laws.fewer_examples(2)
@for_all_lengths(model=models(), stateful=st.booleans(), random=st.randoms(use_true_random=False))
def test_order(lengths: list[int], model: nn.Sequential, stateful: bool, random: Any) -> None:
    xs = sequences(lengths, (2,))
    order = random.sample(range(len(xs)), len(xs))
    laws.check_order(model, xs, order, start(model, len(xs)) if stateful else None)


@laws.fewer_examples(4)
@for_all_lengths(model=models())
def test_padding(lengths: list[int], model: nn.Sequential) -> None:
    laws.check_padding(model, sequences(lengths or [0], (2,)), float("nan"), "right", True)


@laws.fewer_examples(2)
@for_all_lengths(model=models(), stateful=st.booleans())
def test_other_laws(lengths: list[int], model: nn.Sequential, stateful: bool) -> None:
    xs = sequences(lengths or [0], (2,))
    state = start(model, len(xs)) if stateful else None
    laws.check_lengths(model, xs)
    laws.check_empty(model, xs, state)
    laws.check_called_as_itself(model, xs)
    laws.check_unmodified(model, xs, state)


def test_a_whole_tagger() -> None:
    model = nn.Sequential(nn.Embedding(1000, 32), nn.LSTM(32, 64, bidirectional=True), nn.Linear(128, 17))
    tokens = [torch.randint(1000, (n,)) for n in (4, 0, 9)]
    outputs = encode(model, tokens)
    assert [output.shape for output in outputs] == [(4, 17), (0, 17), (9, 17)]
    laws.check_alone(model, tokens)


def test_empty_list() -> None:
    model = nn.Sequential(nn.Embedding(1000, 32), nn.LSTM(32, 64), nn.Linear(64, 17))
    assert encode(model, []) == []
    outputs, state = encode_with_state(model, [])
    assert outputs == []
    assert state.batch_size == 0
    assert encode(nn.Sequential(nn.Embedding(1000, 32), nn.Linear(32, 17)), []) == []


def test_without_a_recurrent_layer_it_keeps_no_state() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    assert not is_recurrent(model)
    message = r"`layer` must keep a state; got a torch.nn.modules.container.Sequential, which keeps none. Call encode."
    with pytest.raises(UnsupportedLayerError, match=message):
        encode_with_state(model, [torch.zeros(1, 2)])


def test_subclass_with_its_own_forward_is_refused() -> None:
    class Negated(nn.Sequential):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return -input

    message = r"`layer` must have an encoder; got .*Negated: it has a forward of its own. If it is made of layers"
    xs = [torch.zeros(3, 2)]
    for call in (encode, encode_with_state, lambda layer, _: is_recurrent(layer)):
        for layer in (nn.Linear(2, 2), nn.GRU(2, 2)):
            with pytest.raises(UnsupportedLayerError, match=message):
                call(Negated(layer), xs)


def test_subclass_without_one_is_a_sequential() -> None:
    class Block(nn.Sequential):
        pass

    laws.check_alone(Block(nn.Linear(2, 2)), sequences([2, 0, 3], (2,), torch.float32))


def test_unsupported_layer_inside_is_found_before_any_work() -> None:
    class Mystery(nn.Module):
        pass

    calls: list[nn.Module] = []
    linear = nn.Linear(2, 2)
    linear.register_forward_hook(lambda module, args, output: calls.append(module))
    with pytest.raises(UnsupportedLayerError, match=r"got .*Mystery: none is registered"):
        encode(nn.Sequential(linear, Mystery()), [torch.zeros(3, 2)])
    assert calls == []


def test_an_error_inside_says_where() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LSTM(4, 5))
    with pytest.raises(SeqbatchValueError, match=r"must have features \(4,\), for LSTM\(4, 5\); got \(3,\)") as caught:
        encode(model, [torch.zeros(3, 2)])
    assert caught.value.__notes__ == [
        "while LSTM(4, 5) ran on "
        "SequenceBatch(1 sequence of 3 steps, features (3,), torch.float32, cpu, requires_grad=True)",
        "as layer 1 of Sequential",
        "while Sequential(...) ran on SequenceBatch(1 sequence of 3 steps, features (2,), torch.float32, cpu)",
    ]


@pytest.mark.parametrize("with_state", [False, True])
def test_an_error_inside_names_the_layer_among_many(with_state: bool) -> None:
    blocks = [Residual(nn.GRU(2, 2)), TwoWay(nn.GRU(2, 1), nn.GRU(2, 1)), nn.Sequential(Residual(nn.GRU(3, 3)))]
    run: Any = encode_with_state if with_state else encode
    with pytest.raises(SeqbatchValueError) as caught:
        run(nn.Sequential(*blocks), [torch.zeros(3, 2)])
    places = ["as `layer` of Residual", "as layer 0 of Sequential", "as layer 2 of Sequential"]
    assert [note for note in caught.value.__notes__ if note.startswith("as")] == places
    for narrow, place in enumerate(("forward_layer", "backward_layer")):
        layers = [nn.GRU(2, 1), nn.GRU(2, 1)]
        layers[narrow] = nn.GRU(1, 1)
        with pytest.raises(SeqbatchValueError) as caught:
            run(TwoWay(*layers), [torch.zeros(3, 2)])
        assert caught.value.__notes__[1] == f"as `{place}` of TwoWay"


def test_wrong_states() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 4))
    xs = [torch.zeros(3, 2)]
    good = encode_with_state(model, xs)[1]
    with pytest.raises(
        SeqbatchTypeError, match=r"`state` must be a ContainerState, for Sequential\(\.\.\.\); got a seqbatch"
    ):
        encode_with_state(model, xs, good.states[1])
    message = r"`state.states` must hold 2 states, None but for the layers \[1\]; got 2 states, not None for \[0\]."
    with pytest.raises(SeqbatchValueError, match=message):
        encode_with_state(model, xs, ContainerState((good.states[1], None)))
    with pytest.raises(SeqbatchValueError, match=r"`state.states` must hold 2 states.*; got 1 state"):
        encode_with_state(model, xs, ContainerState((good.states[1],)))
    calls: list[nn.Module] = []
    model[0].register_forward_hook(lambda module, args, output: calls.append(module))
    with pytest.raises(SeqbatchValueError, match=r"`state` must be of 2 sequences, as the batch; got 1\."):
        encode_with_state(model, xs * 2, good)
    assert calls == []


class Counter(nn.Module):
    """Gives its input, and counts the steps it has seen of each sequence."""


@register_recurrent(Counter)
def _(layer: Counter, batch: SequenceBatch, state: torch.Tensor | None) -> tuple[SequenceBatch, torch.Tensor]:
    start = torch.zeros(batch.batch_size, dtype=torch.int64) if state is None else state
    return batch, start + torch.tensor(batch.lengths)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(Counter()),
        nn.Sequential(Counter(), nn.GRU(2, 2)),
        nn.Sequential(nn.Sequential(nn.Tanh(), Counter()), nn.Linear(2, 2), nn.GRU(2, 2), Counter()),
    ],
    ids=["alone", "beside another", "inside another"],
)
def test_the_state_of_a_plugin_may_be_a_plain_tensor(model: nn.Sequential) -> None:
    xs = sequences([3, 0, 2], (2,), torch.float32)
    outputs, state = encode_with_state(model, xs)
    assert isinstance(state, ContainerState)
    assert_close(encode(model, xs), outputs)
    _, again = encode_with_state(model, xs, state)
    for one, times in ((state, 1), (again, 2)):
        counts = {tuple(tensor.tolist()) for tensor in laws.tensors_of(one) if tensor.dtype is torch.int64}
        assert counts == {(3 * times, 0, 2 * times)}
    if any(isinstance(layer, nn.GRU) for layer in model):
        with pytest.raises(SeqbatchValueError, match=r"`state` must be of 2 sequences, as the batch; got 3\."):
            encode_with_state(model, xs[:2], state)
    for method in ("select", "reset"):
        message = rf"`states\[.\]` must have batch_size and {method}, as RNNState; got a torch\.Tensor\."
        with pytest.raises(SeqbatchTypeError, match=message):
            getattr(state, method)([])
