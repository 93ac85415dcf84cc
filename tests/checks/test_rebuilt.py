"""`SequenceBatch(sequences)`, without lengths: what libraries call that rebuild a Sequence from its elements."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import DTYPES, features, for_all_lengths, sequences
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, default_collate, default_convert

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch, encode


@for_all_lengths(features=features)
def test_it_is_as_from_sequences(lengths: list[int], features: Any) -> None:
    xs = sequences(lengths, features)
    wanted = SequenceBatch.from_sequences(xs)
    for given in (xs, tuple(xs), iter(xs), (x for x in xs), wanted):
        made = SequenceBatch(given)
        assert type(made) is SequenceBatch
        assert made.lengths == wanted.lengths
        assert_close(made.values, wanted.values, rtol=0, atol=0)


def test_gradients_flow() -> None:
    xs = [torch.ones(2, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)]
    SequenceBatch(xs).values.sum().backward()
    assert [x.grad.tolist() for x in xs if x.grad is not None] == [[[1.0] * 3] * 2, [[1.0] * 3]]


PACKED = r"^`values` must be several Tensors; got a torch\.nn\.utils\.rnn\.PackedSequence\. Call from_packed\.$"
BAD: list[tuple[Any, type[Exception], str]] = [
    (
        torch.zeros(3, 2),
        SeqbatchTypeError,
        r"^`lengths` must be given with a Tensor of flat values; got None\. For one sequence call "
        r"SequenceBatch\.from_sequences\(\[values\]\), for a padded Tensor SequenceBatch\.from_padded\.$",
    ),
    (3, SeqbatchTypeError, r"^`values` must be an iterable of Tensors; got an int\.$"),
    (nn.utils.rnn.pack_sequence([torch.zeros(2)]), SeqbatchTypeError, PACKED),
    ([torch.zeros(2), [1.0]], SeqbatchTypeError, r"^`values\[1\]` must be a Tensor; got a list\. Make it one by"),
    ([torch.zeros(2), torch.tensor(1.0)], SeqbatchValueError, r"^`values\[1\]` must have shape \(steps, \*features\);"),
    (
        [torch.zeros(2, 3), torch.zeros(2, 4)],
        SeqbatchValueError,
        r"^`values\[1\]` must have features \(3,\), as values\[0\]; got \(4,\)\. "
        r"A sequence has shape \(steps, \*features\)\.$",
    ),
]


@pytest.mark.parametrize(("values", "kind", "message"), BAD)
def test_what_is_refused(values: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SequenceBatch(values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_default_convert(dtype: torch.dtype) -> None:
    batch = SequenceBatch(torch.zeros(3, 2, dtype=dtype), [2, 1])
    rebuilt: Any = default_convert({"x": [batch]})
    converted = rebuilt["x"][0]
    assert isinstance(converted, SequenceBatch)
    assert converted.lengths == (2, 1)
    assert converted.dtype is dtype
    loader: Any = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]  # a list will do
    loaded = next(iter(loader))
    assert isinstance(loaded, SequenceBatch)
    assert loaded.lengths == (2, 1)


@pytest.mark.parametrize("lengths", [[4, 4], [4]])
def test_outputs_that_only_look_stacked(lengths: list[int]) -> None:
    """As many features as steps: of another dtype they are not the sequences, because stacking keeps the dtype."""
    ids = SequenceBatch(torch.arange(sum(lengths)), lengths)
    embedding = nn.Embedding(8, 4)
    made = SequenceBatch([embedding(one) for one in ids])
    assert made.lengths == ids.lengths
    assert_close(made.values, encode(embedding, ids).values)


STACKED = (
    r"^`values\[0\]` must have shape \(steps, 2\), as the sequences they are made of; got \({}, {}, 2\)\. "
    r"To join batches call SequenceBatch\.concat; for sequences of such features call from_sequences\.$"
)


@pytest.mark.parametrize("lengths", [[4, 4], [4, 1], [2, 2, 2], [4]])
@pytest.mark.parametrize("number", [1, 3])
def test_default_collate_never_takes_batches_for_steps(lengths: list[int], number: int) -> None:
    batches = [SequenceBatch(torch.randn(sum(lengths), 2), lengths) for _ in range(number)]
    message = STACKED.format(number, lengths[0])
    with pytest.raises(SeqbatchValueError, match=message):
        default_collate(batches)
    with pytest.raises(SeqbatchValueError, match=message):
        default_collate([{"x": batch} for batch in batches])
    with pytest.raises(SeqbatchValueError, match=message):
        next(iter(DataLoader(batches, batch_size=number)))  # type: ignore[arg-type]  # a list will do


def test_default_collate_of_batches_of_other_lengths() -> None:
    batches = [SequenceBatch(torch.zeros(3, 2), lengths) for lengths in ([2, 1], [1, 2])]
    with pytest.raises(RuntimeError, match=r"stack expects each tensor to be equal size"):
        default_collate(batches)


@pytest.mark.parametrize(
    "change",
    [torch.Tensor.double, lambda x: x[:1], lambda x: x.sum(0, keepdim=True), lambda x: x.flip(0), lambda x: x[:, None]],
)
def test_what_is_made_of_each_sequence_is_not_refused(change: Callable[[Tensor], Tensor]) -> None:
    batch = SequenceBatch(torch.randn(6, 3), [3, 3])
    assert_close(SequenceBatch(change(x) for x in batch).to_sequences(), [change(x) for x in batch])


def test_a_sequence_of_steps_that_are_sequences_is_made_by_from_sequences() -> None:
    batch = SequenceBatch(torch.randn(6, 3), [3, 3])
    assert SequenceBatch.from_sequences([x[None] for x in batch]).feature_shape == (3, 3)


def test_a_batch_that_is_gone_is_not_compared_with() -> None:
    for x in SequenceBatch(torch.zeros(4, 2), [2, 2]):
        assert len(x) == 2
    assert SequenceBatch([torch.zeros(1, 2, 2)] * 2).feature_shape == (2, 2)


@pytest.mark.graphs
def test_iterated_in_a_graph() -> None:
    class Model(nn.Module):
        def forward(self, xs: list[Tensor]) -> Tensor:
            return torch.cat([2 * x for x in SequenceBatch(xs)])

    model, xs = Model(), [torch.randn(2, 3), torch.randn(4, 3)]
    assert_close(torch.compile(model, fullgraph=True, backend="eager")(xs), model(xs))
    assert_close(torch.export.export(model, (xs,)).module()(xs), model(xs))


@pytest.mark.graphs
def test_in_a_graph() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, xs: list[Tensor]) -> Tensor:
            return encode(self.linear, SequenceBatch(xs)).values

    model, xs = Model(), [torch.randn(2, 3), torch.randn(4, 3)]
    assert_close(torch.compile(model, fullgraph=True, backend="eager")(xs), model(xs))


def test_stacked_sequences_are_recognized_until_another_batch_is_iterated() -> None:
    batches = [SequenceBatch(torch.zeros(4, 2), [2, 2]) for _ in range(3)]
    stacked = [torch.stack(sequences) for sequences in zip(*batches, strict=True)]
    with pytest.raises(SeqbatchValueError, match=STACKED.format(3, 2)):
        SequenceBatch(stacked)
    assert len([*SequenceBatch(torch.zeros(1), [1])]) == 1
    assert SequenceBatch(stacked).feature_shape == (2, 2)
