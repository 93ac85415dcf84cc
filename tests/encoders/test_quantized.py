"""Dynamically quantized layers, which round what they are given by the range of all of it: each sequence runs alone."""

from typing import Any

import pytest
import torch
import torch.ao.nn.quantized.dynamic as quantized
from hypothesis import strategies as st
from strategies import for_all_lengths
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic
from torch.testing import assert_close

import seqbatch.testing as laws
from seqbatch import LSTMState, RNNState, SeqbatchValueError, encode, encode_with_state
from seqbatch.testing._comparison import tensors_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
]
# Ranges so unequal that rounding by the largest loses the others.
SPREAD = (1.0, 100.0, 1.0, 1.0)


def sequences(size: int) -> list[Tensor]:
    return [scale * torch.randn(length, size) for scale, length in zip(SPREAD, (4, 6, 0, 3), strict=True)]


def quantized_linear(kind: type[nn.Module] = quantized.Linear) -> Any:
    layer: Any = kind(5, 3)
    layer.set_weight_bias(torch.quantize_per_tensor(torch.randn(3, 5), 0.02, 0, torch.qint8), torch.randn(3))
    return layer


class InPlace(quantized.Linear):
    """A layer that changes what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.add_(1)[:, :3]


def test_one_that_works_in_place_leaves_what_is_the_callers() -> None:
    x = torch.zeros(4, 5)
    encode(quantized_linear(InPlace), x)
    assert not x.any()


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(2, 4), r"`sequences` must have features that end with \(5,\), for .*; got \(4,\)\."),
        (torch.zeros(0, 4), r"`sequences` must have features that end with \(5,\), for .*; got \(4,\)\."),
        (torch.zeros(2, 5).double(), r"`layer` must take features \(5,\) and torch\.float64; got .* PyTorch says: "),
    ],
)
def test_what_a_linear_does_not_take(x: Tensor, said: str) -> None:
    with pytest.raises(SeqbatchValueError, match=said):
        encode(quantized_linear(), [x])


def test_linear() -> None:
    layer: Any = quantized_linear()
    xs = sequences(5)
    entered: list[nn.Module] = []
    layer.register_forward_pre_hook(lambda module, args: entered.append(module))
    found = encode(layer, xs)
    assert entered == [layer]
    assert_close(found, [layer(x) if len(x) else torch.zeros(0, 3) for x in xs], rtol=0, atol=0)
    assert encode(layer, [torch.zeros(0, 2, 5)])[0].shape == (0, 2, 3)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("stateful", [False, True])
def test_recurrent_layers(kind: str, stateful: bool) -> None:
    layer: Any = getattr(quantized, kind)(5, 8, num_layers=2, bidirectional=True)
    xs = sequences(5)
    start = encode_with_state(layer, [100 * x for x in xs])[1] if stateful else None
    outputs, state = encode_with_state(layer, xs, start)
    for i, x in enumerate(xs):
        if not len(x):
            assert outputs[i].shape == (0, 16)
            continue
        before = () if start is None else (start[i].to_torch(),)
        alone, after = layer(x[:, None], *before)
        assert_close(outputs[i], alone[:, 0], rtol=0, atol=0)
        assert_close(state[i].to_torch(), after, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "calls"), [("LSTM", 3), ("GRU", 3), ("LSTMCell", 13), ("GRUCell", 13), ("RNNCell", 13)]
)
def test_hooks_run_for_each_sequence_and_of_a_cell_for_each_step(kind: str, calls: int) -> None:
    layer: Any = getattr(quantized, kind)(5, 8)
    entered: list[nn.Module] = []
    left: list[nn.Module] = []
    layer.register_forward_pre_hook(lambda module, args: entered.append(module))
    layer.register_forward_hook(lambda module, args, output: left.append(module))
    encode(layer, sequences(5))
    assert entered == left == [layer] * calls


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(kind: str) -> None:
    cell: Any = getattr(quantized, kind)(5, 8)
    xs = sequences(5)
    outputs, state = encode_with_state(cell, xs)
    for i, x in enumerate(xs):
        hidden: Any = None
        for step, found in zip(x, outputs[i], strict=True):
            hidden = cell(step[None], hidden)
            assert_close(found, (hidden[0] if isinstance(state, LSTMState) else hidden)[0], rtol=0, atol=0)


KINDS: dict[str, Any] = {
    "LSTM": LSTMState,
    "GRU": RNNState,
    "LSTMCell": LSTMState,
    "GRUCell": RNNState,
    "RNNCell": RNNState,
}


def made(kind: str, dtype: torch.dtype, **options: Any) -> Any:
    """Quantize a layer of 5 features in and 4 out, as users do."""
    layer_type: Any = getattr(nn, kind)
    return quantize_dynamic(nn.Sequential(layer_type(5, 4, **options)), {layer_type}, dtype=dtype)[0]


def alone(layer: Any, sequence: Tensor, state: Any) -> Any:
    """The oracle, for the laws: the layer itself on one sequence, a cell step by step."""
    kind = type(layer).__name__
    if kind == "Linear":
        return layer(sequence)
    if kind in ("LSTM", "GRU"):
        axis = 0 if layer.batch_first else 1
        output, final = layer(sequence.unsqueeze(axis), None if state is None else state.to_torch())
        return output.squeeze(axis), KINDS[kind].from_torch(final, layer)
    parts = [part[0, 0] for part in tensors_of(state)]
    outputs = []
    for step in sequence:
        result = layer(step[None], None if not parts else tuple(parts) if kind == "LSTMCell" else parts[0])
        parts = list(result) if kind == "LSTMCell" else [result]
        outputs.append(parts[0])
    return torch.cat(outputs), KINDS[kind](*(part[None, None] for part in parts))


quantized_kinds: st.SearchStrategy[Any] = st.one_of(
    st.tuples(st.just("Linear"), st.just({})),
    st.tuples(st.sampled_from(["LSTMCell", "GRUCell", "RNNCell"]), st.just({})),
    st.tuples(
        st.sampled_from(["LSTM", "GRU"]),
        st.fixed_dictionaries(
            {"num_layers": st.integers(1, 2), "bidirectional": st.booleans(), "batch_first": st.booleans()}
        ),
    ),
)


@for_all_lengths(
    dtype=st.sampled_from([torch.qint8, torch.float16]),
    form=quantized_kinds,
    stateful=st.booleans(),
    seed=st.integers(0, 9),
)
def test_laws_without_gradients(lengths: list[int], dtype: torch.dtype, form: Any, stateful: bool, seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    kind, options = form
    with torch.no_grad():
        layer = made(kind, dtype, **options)
        xs = [10.0 ** (i % 3) * torch.randn(length, 5) for i, length in enumerate(lengths)]
        state = None
        if stateful and xs and kind != "Linear":
            state = encode_with_state(layer, [torch.randn(2, 5) for _ in xs])[1]
        laws.check_alone(layer, xs, state, alone=alone)
        laws.check_order(layer, xs, [*reversed(range(len(xs)))], state)
        laws.check_lengths(layer, xs)


@pytest.mark.parametrize(("kind", "calls"), [("Linear", 1), ("LSTM", 1), ("GRU", 1)])
def test_weights_of_float16_run_all_at_once(kind: str, calls: int) -> None:
    layer = made(kind, torch.float16)
    entered: list[nn.Module] = []
    layer.register_forward_pre_hook(lambda module, args: entered.append(module))
    encode(layer, sequences(5))
    assert entered == [layer] * calls


@pytest.mark.parametrize("kind", ["Linear", "LSTM", "GRU", "LSTMCell"])
def test_weights_that_were_loaded_count_and_not_those_that_were_declared(kind: str) -> None:
    declared, loaded = made(kind, torch.float16), made(kind, torch.qint8)
    declared.load_state_dict(loaded.state_dict())
    xs = [x for x in sequences(5) if len(x)]
    wanted = [alone(loaded, x, None) for x in xs]
    found = encode(declared, xs)
    for one, result in zip(found, wanted, strict=True):
        assert_close(one, result if kind == "Linear" else result[0], rtol=0, atol=0)
