"""A batch or a state given to what wants a Tensor: an error that says what to call, or what a list of Tensors gives."""

import collections.abc
import copy
import operator
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from states import MAKERS
from torch import nn
from torch.nn import functional
from torch.nn.utils import rnn
from torch.testing import assert_close
from torch.utils.dlpack import from_dlpack

from seqbatch import LSTMState, RNNState, SeqbatchError, SeqbatchTypeError, SequenceBatch
from seqbatch.layers import AttentionPool, Causal, LayerNormLSTM, LockedDropout, MeanPool

ENCODE = "Call encode(layer, batch) for a layer, batch.map(function) for a function that treats every step by itself."
VALUES = "Pass batch.values, which holds all steps without padding."
STEPS = "Its steps are batch.values, and padded batch.to_padded(batch_first=True)."
STATE = "Call encode_with_state(layer, sequences, state)"
ATTRIBUTE = "is an attribute of a Tensor, and a layer or function that reads it must be called with one"
IDS = SequenceBatch(torch.tensor([1, 0, 2, 1]), [2, 2])
X = torch.randn(4, 3)
# Sequences of equal length are what PyTorch and NumPy could stack.
batches = pytest.mark.parametrize(
    "batch", [SequenceBatch(X, [2, 2]), SequenceBatch(X, [3, 1]), SequenceBatch(X[:0], []), SequenceBatch(X, [4])]
)

CALLS: list[tuple[str, Callable[[Any], object]]] = [
    ("dim", nn.LSTM(3, 4)),
    ("dim", nn.GRU(3, 4)),
    ("dim", nn.LSTMCell(3, 4)),
    ("linear", nn.Linear(3, 4)),
    ("embedding", nn.Embedding(5, 4)),
    ("conv1d", nn.Conv1d(3, 4, 1)),
    ("dim", nn.BatchNorm1d(3)),
    ("layer_norm", nn.LayerNorm(3)),
    ("dropout", nn.Dropout()),
    ("dim", lambda batch: nn.MultiheadAttention(3, 1)(batch, batch, batch)),
    ("dim", nn.TransformerEncoderLayer(3, 1)),
    ("linear", nn.Sequential(nn.Linear(3, 4))),
    ("mse_loss", lambda batch: nn.MSELoss()(batch, batch)),
    ("cross_entropy", lambda batch: functional.cross_entropy(X, batch)),
    ("softmax", lambda batch: functional.softmax(batch, -1)),
    ("relu", torch.relu),
    ("cat", torch.cat),
    ("stack", torch.stack),
    ("cat", lambda batch: torch.cat([batch, batch])),
    ("stack", lambda batch: torch.stack([batch, X])),
    ("where", lambda batch: torch.where(batch, 1, 0)),
    ("add_", lambda batch: X.clone().add_(batch)),
    ("zeros_like", torch.zeros_like),
    ("equal", lambda batch: torch.equal(batch, batch)),
    ("_pack_padded_sequence", lambda batch: rnn.pack_padded_sequence(batch, [2, 2])),
    ("grad", lambda batch: torch.autograd.grad(batch, [X])),
    ("shape", lambda batch: batch.shape),
    ("size", lambda batch: batch.size()),
    ("numpy", lambda batch: batch.numpy()),
    ("requires_grad", lambda batch: batch.requires_grad),
]


@pytest.mark.parametrize(("name", "call"), CALLS)
@batches
def test_layers_and_functions_of_torch(batch: SequenceBatch, name: str, call: Callable[[Any], object]) -> None:
    with pytest.raises(SeqbatchTypeError) as caught:
        call(batch)
    found = str(caught.value)
    must = rf"must be called with Tensors|{re.escape(ATTRIBUTE)}"
    assert re.match(rf"`{name}` ({must}); got a seqbatch\.Seq", found)
    assert (VALUES if name in ("mse_loss", "cross_entropy") else ENCODE) in found


@pytest.mark.parametrize(
    "layer",
    [MeanPool(), AttentionPool(3), LockedDropout(0.5), Causal(nn.MultiheadAttention(4, 2)), LayerNormLSTM(3, 4)],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_of_seqbatch_are_called_by_encode_too(layer: nn.Module) -> None:
    message = rf"^`sequence` must be a Tensor; got a seqbatch\.SequenceBatch\. {re.escape(ENCODE)}$"
    with pytest.raises(SeqbatchTypeError, match=message):
        layer(SequenceBatch(X, [2, 2]))


BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"]
ORDER = ["lt", "le", "gt", "ge"]


@pytest.mark.parametrize("name", BINARY + ORDER)
@pytest.mark.parametrize(
    "other", [1, 2.0, X, X.numpy(), np.float32(2), IDS, None], ids=lambda other: type(other).__name__
)
@batches
def test_operators(batch: SequenceBatch, name: str, other: object) -> None:
    function = getattr(operator, name)
    with pytest.raises(SeqbatchTypeError, match=r"^`\S+` must be (applied to Tensors|called with arrays); got a seqba"):
        function(batch, other)
    with pytest.raises(SeqbatchTypeError, match=r"^`\S+` must be (applied to Tensors|called with arrays); got a seqba"):
        function(other, batch)


@pytest.mark.parametrize(
    ("name", "symbol", "function"), [("neg", "-", "neg"), ("abs", "abs", "abs"), ("invert", "~", "bitwise_not")]
)
@batches
def test_operators_of_one_operand(batch: SequenceBatch, name: str, symbol: str, function: str) -> None:
    message = (
        rf"^`{symbol}` must be applied to Tensors; got a .*SequenceBatch\. Call batch\.map\(torch\.{function}\)\.$"
    )
    with pytest.raises(SeqbatchTypeError, match=message):
        getattr(operator, name)(batch)


def advice(error: SeqbatchError) -> list[str]:
    """Find what the error says to call."""
    return re.findall(r"batch\.map\(.*?\)(?=[ .,])", str(error))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", *ORDER])
def test_the_advice_for_an_operator_is_right(name: str) -> None:
    function = getattr(operator, name)
    batch = SequenceBatch(X.abs() + 1, [3, 1])
    other = batch.map(torch.sqrt)
    cases: list[tuple[Callable[[], object], list[Any]]] = [
        (lambda: function(batch, other), [function(batch.values, other.values), function(batch.values, 1)]),
        (lambda: function(1, batch), [function(1, batch.values)]),
    ]
    for call, wanted in cases:
        with pytest.raises(SeqbatchTypeError) as caught:
            call()
        calls = advice(caught.value)[-len(wanted) :]
        results = [eval(one, {"torch": torch}, {"batch": batch, "other": other}).values for one in calls]
        assert_close(results, wanted)


@pytest.mark.parametrize(
    ("left", "wanted"), [(False, lambda x, weight: x @ weight), (True, lambda x, weight: weight @ x)]
)
def test_the_advice_for_a_product_is_right(left: bool, wanted: Callable[..., Any]) -> None:
    batch, weight = SequenceBatch(X, [3, 1]), torch.randn(3, 3)
    with pytest.raises(SeqbatchTypeError) as caught:
        operator.matmul(weight, batch) if left else operator.matmul(batch, weight)
    found = eval(advice(caught.value)[0], {"weight": weight}, {"batch": batch})
    assert_close(found.values, torch.stack([wanted(step, weight) for step in X]))


ARRAYS: list[Callable[[Any], object]] = [
    np.asarray,
    np.array,
    torch.as_tensor,
    torch.tensor,
    torch.asarray,
    from_dlpack,
    X.new_tensor,
    np.median,
    lambda batch: np.zeros(4)[batch],
]


@pytest.mark.parametrize("call", ARRAYS)
@batches
def test_conversions(batch: SequenceBatch, call: Callable[[Any], object]) -> None:
    message = "`data` must be a Tensor, an array or numbers; got a seqbatch.SequenceBatch. "
    with pytest.raises(SeqbatchTypeError, match=f"^{re.escape(message + STEPS)}$"):
        call(batch)


def test_sequences_of_one_number_do_not_become_a_tensor() -> None:
    assert torch.tensor([torch.ones(1), torch.ones(1)]).shape == (2,)  # as torch makes of a list
    for call in (torch.as_tensor, torch.tensor):
        with pytest.raises(SeqbatchTypeError, match=r"^`data` must be a Tensor"):
            call(SequenceBatch(torch.ones(2), [1, 1]))


@pytest.mark.parametrize("function", [np.sin, np.add.reduce, lambda batch: np.multiply(batch, 2)])
@batches
def test_functions_of_numpy(batch: SequenceBatch, function: Callable[[Any], object]) -> None:
    message = r"^`(sin|add|multiply)` must be called with arrays; got a seqbatch\.SequenceBatch\. Its steps are"
    with pytest.raises(SeqbatchTypeError, match=message):
        function(batch)


@pytest.mark.parametrize("call", [np.sum, torch.nested.nested_tensor, torch.Tensor, torch.from_numpy, float, int])
def test_what_has_no_hook_raises_too(call: Callable[[Any], object]) -> None:
    for lengths in ([2, 2], [3, 1], [1, 1, 1, 1]):
        with pytest.raises((TypeError, RuntimeError)):
            call(SequenceBatch(X, lengths))


@pytest.mark.parametrize("lengths", [[2, 2], [3, 1], [1, 1, 1, 1]])
def test_what_takes_a_list_of_tensors_takes_a_batch(lengths: list[int]) -> None:
    batch: Any = SequenceBatch(X, lengths)
    xs = batch.to_sequences()
    assert_close(rnn.pad_sequence(batch, batch_first=True), rnn.pad_sequence(xs, batch_first=True))
    packed, wanted = (rnn.pack_sequence(given, enforce_sorted=False) for given in (batch, xs))
    assert_close(packed.data, wanted.data)
    assert_close(packed.batch_sizes, wanted.batch_sizes)
    assert_close(batch, xs)
    assert_close(sum(x.sum() for x in batch), X.sum())
    assert nn.Identity()(batch) is batch


def test_attributes_of_a_tensor_are_not_there() -> None:
    batch = SequenceBatch(X, [3, 1])
    for name in ("shape", "dim", "size", "ndim", "numpy", "numel", "view", "tolist", "_no_such_thing"):
        assert not hasattr(batch, name)
        assert getattr(batch, name, 3) == 3
    with pytest.raises(SeqbatchTypeError) as caught:
        batch.view  # type: ignore[attr-defined]  # noqa: B018  # the error is what is tested
    assert isinstance(caught.value, AttributeError)
    message = f"`view` {ATTRIBUTE}; got a seqbatch.SequenceBatch. {ENCODE} {STEPS}"
    assert str(caught.value) == message
    with pytest.raises(AttributeError, match=r"^'SequenceBatch' object has no attribute 'no_such_thing'$") as plain:
        batch.no_such_thing  # type: ignore[attr-defined]  # noqa: B018  # as before
    assert not isinstance(plain.value, SeqbatchError)


def test_comparison_is_by_identity_from_either_side() -> None:
    one, other = SequenceBatch(X, [3, 1]), SequenceBatch(X, [3, 1])
    for thing in (other, X, X.numpy, 1, None):
        assert (one == thing) is False
        assert (one != thing) is True
        assert (thing == one) is False
        assert (thing != one) is True
    state = MAKERS[0](2)
    assert (state == X) is False
    assert (state != X) is True


def test_it_is_still_what_it_was() -> None:
    batch = SequenceBatch(X, [3, 1])
    assert isinstance(batch, collections.abc.Sequence)
    for back in (copy.copy(batch), copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert_close(back.to_sequences(), batch.to_sequences())
    assert not torch.is_tensor(batch)
    assert bool(batch)
    assert not SequenceBatch(X[:0], [])


STATE_CALLS: list[tuple[str, Callable[[Any], object]]] = [
    ("dim", lambda state: nn.GRU(4, 4)(X, state)),
    ("dim", lambda state: nn.LSTM(3, 4)(X, state)),
    ("size", lambda state: nn.GRU(3, 4)(rnn.pack_sequence([X]), state)),
    ("dim", lambda state: nn.GRUCell(3, 4)(X, state)),
    ("linear", nn.Linear(4, 2)),
    ("relu", torch.relu),
    ("cat", lambda state: torch.cat([state, state])),
    ("stack", lambda state: torch.stack([X, state])),
    ("zeros_like", torch.zeros_like),
    ("shape", lambda state: state.shape),
    (r"\+", lambda state: state + 1),
    (r"\*", lambda state: 2 * state),
    (r"\*", lambda state: X * state),
    ("-", operator.neg),
    ("<", lambda state: state < X),
    ("@", lambda state: X @ state),
    ("data", torch.as_tensor),
    ("add", lambda state: torch.add(X, state)),
]


@pytest.mark.parametrize(("name", "call"), STATE_CALLS)
@pytest.mark.parametrize("make_state", MAKERS)
def test_states(make_state: Callable[[int], Any], name: str, call: Callable[[Any], object]) -> None:
    with pytest.raises(SeqbatchTypeError) as caught:
        call(make_state(2))
    assert re.match(rf"`{name}` (must be|is an) .*; got an? seqbatch\.\w+State\. ", str(caught.value))
    assert STATE in str(caught.value) or "Its Tensors are" in str(caught.value)


def test_the_advice_for_a_state_is_right() -> None:
    gru, lstm, xs = nn.GRU(3, 4), nn.LSTM(3, 4), X[:, None]
    state = RNNState(torch.randn(1, 1, 1, 4))
    with pytest.raises(SeqbatchTypeError, match=r"for a layer of PyTorch itself call state\.to_torch\(\)\."):
        gru(xs, state)
    assert_close(gru(xs, state.to_torch())[0], gru(xs, state.hidden[0])[0])
    long = LSTMState(state.hidden, state.hidden)
    with pytest.raises(SeqbatchTypeError, match=r"for a layer of PyTorch itself call state\.to_torch\(\)\."):
        lstm(xs, long)
    assert_close(lstm(xs, long.to_torch())[0], lstm(xs, (long.hidden[0], long.cell[0]))[0])


@pytest.mark.parametrize("wrong", [lambda batch: batch + 1, torch.relu, lambda batch: batch.shape])
@pytest.mark.graphs
def test_in_a_graph(wrong: Callable[[Any], Any]) -> None:
    compiled: Any = torch.compile(wrong, backend="eager")
    with pytest.raises(SeqbatchTypeError, match=r"must be (applied to|called with) Tensor|is an attribute of a Tensor"):
        compiled(SequenceBatch(X, [3, 1]))


def test_a_list_is_extended_by_the_sequences() -> None:
    batch: Any = SequenceBatch(torch.arange(3.0), [2, 1])
    sequences: list[torch.Tensor] = []
    sequences += batch
    assert_close(sequences, batch.to_sequences())
    with pytest.raises(TypeError, match="can only concatenate list"):
        operator.add([], batch)


def test_what_pytorch_reads_as_any_sequence_of_tensors() -> None:
    """As the page on other libraries and the docstring say: PyTorch asks nothing but the length and the items."""
    table = torch.arange(20.0).view(5, 4)
    with pytest.warns(UserWarning, match="Using a non-tuple sequence for multidimensional indexing is deprecated"):
        found = table[IDS]
    assert_close(found, table[tuple(IDS)])
    ones = SequenceBatch(torch.tensor([[1.0], [2.0]]), [1, 1])
    assert torch.tensor([ones, ones]).tolist() == [[1.0, 2.0]] * 2
    # Beyond 31 sequences, or beside other indices, it asks `__torch_function__`.
    for index in (SequenceBatch(torch.zeros(32, dtype=torch.int64), [1] * 32), (IDS, 0), (IDS,)):
        with pytest.raises(SeqbatchTypeError, match=r"^`__getitem__` must be called with Tensors; got a seqbatch"):
            table[index]
