"""chunks_of: every step once, lanes alike, and gradients as a plain loop over the sequences has them."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import run_alone
from strategies import for_all_lengths, recurrent_layers, sequences
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch, encode, encode_with_state
from seqbatch.data._chunks_of import Chunk, chunks_of

lengths_lists = st.lists(st.integers(0, 20), max_size=8)


@given(lengths=lengths_lists, lanes=st.integers(1, 5), steps=st.integers(1, 9))
def test_every_step_is_in_one_chunk_once(lengths: list[int], lanes: int, steps: int) -> None:
    chunks = chunks_of(lengths, lanes=lanes, steps=steps)
    found = Counter(
        (i, step)
        for chunk in chunks
        for i, (begin, end) in zip(chunk.sequences, chunk.spans, strict=True)
        for step in range(begin, end)
    )
    assert found == Counter((i, step) for i, length in enumerate(lengths) for step in range(length))


@given(lengths=lengths_lists, lanes=st.integers(1, 5), steps=st.integers(1, 9))
def test_a_lane_reads_its_sequences_in_order_and_whole(lengths: list[int], lanes: int, steps: int) -> None:
    chunks = chunks_of(lengths, lanes=lanes, steps=steps)
    there = [i for i, length in enumerate(lengths) if length]
    number = min(lanes, len(there))
    assert {(len(chunk.sequences), len(chunk.spans)) for chunk in chunks} <= {(number, number)}
    for lane in range(number):
        last, stop = -1, 0
        for chunk in chunks:
            i, (begin, end) = chunk.sequences[lane], chunk.spans[lane]
            if lane in chunk.starts:
                assert i > last, "sequences in the order given"
                assert last < 0 or stop == lengths[last], "the former was read to its end"
                assert begin == 0
            else:
                assert (i, begin) == (last, stop), "a lane goes on where it was"
            assert end == min(begin + steps, lengths[i])
            last, stop = i, end
        assert stop == lengths[last]
    assert not chunks or list(chunks[0].sequences) == sorted(chunks[0].sequences)


@given(lengths=lengths_lists, lanes=st.integers(1, 5), steps=st.integers(1, 9))
def test_lanes_come_to_their_ends_at_about_the_same_time(lengths: list[int], lanes: int, steps: int) -> None:
    chunks = chunks_of(lengths, lanes=lanes, steps=steps)
    busy = Counter(lane for chunk in chunks for lane, (begin, end) in enumerate(chunk.spans) if end > begin)
    longest = max((-(-length // steps) for length in lengths), default=0)
    assert not busy or max(busy.values()) - min(busy.values()) <= longest
    assert chunks_of(lengths, lanes=lanes, steps=steps) == chunks


def test_longest_first() -> None:
    """In the order given lanes would have 10 and 30 steps to read."""
    chunks = chunks_of([10, 10, 20], lanes=2, steps=10)
    assert [chunk.sequences for chunk in chunks] == [(0, 2), (1, 2)]
    assert [chunk.starts for chunk in chunks] == [[0, 1], [0]]


def test_with_a_lane_for_each_it_reads_the_sequence_of_its_index() -> None:
    chunks = chunks_of([3, 9, 5], lanes=10, steps=4)
    assert [chunk.sequences for chunk in chunks] == [(0, 1, 2)] * 3
    assert [chunk.spans for chunk in chunks] == [
        ((0, 3), (0, 4), (0, 4)),
        ((3, 3), (4, 8), (4, 5)),
        ((3, 3), (8, 9), (5, 5)),
    ]


@pytest.mark.parametrize("lengths", [[], [0], [0, 0], torch.zeros(3, dtype=torch.int64)])
def test_nothing_to_read_gives_no_chunks(lengths: Any) -> None:
    assert chunks_of(lengths, lanes=2, steps=3) == []


layers = st.one_of(
    recurrent_layers().filter(lambda layer: not layer.bidirectional),
    st.builds(lambda: nn.Sequential(nn.Linear(2, 3), nn.GRU(3, 2), nn.LSTM(2, 3)).double()),
)


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    return (output * target).sum()


def train_alone(layer: Any, xs: list[Tensor], targets: list[Tensor], steps: int) -> Tensor:
    """Return the loss of truncated back-propagation by plain PyTorch: sequence by sequence, chunk by chunk."""
    losses = []
    for x, target in zip(xs, targets, strict=True):
        state = None
        for part, wanted in zip(x.split(steps), target.split(steps), strict=True):
            output, state = run_alone(layer, [part], state)
            state = [tensor.detach() for tensor in state]
            losses.append(loss_of(output[0], wanted))
    return sum(losses, torch.zeros(()))


@for_all_lengths(layer=layers, lanes=st.integers(1, 4), steps=st.integers(1, 4), joined=st.booleans())
def test_gradients_are_those_of_a_plain_loop(
    lengths: list[int], layer: Any, lanes: int, steps: int, joined: bool
) -> None:
    xs = sequences(lengths, (getattr(layer, "input_size", 2),))
    targets = [torch.randn_like(output) for output in encode(layer, xs)]
    fields: list[Any] = [SequenceBatch.from_sequences(field) if joined else field for field in (xs, targets)]
    total, state = torch.zeros(()), None
    for chunk in chunks_of(lengths, lanes=lanes, steps=steps):
        inputs, wanted = (chunk.cut(field) for field in fields)
        if state is not None:
            state = state.reset(chunk.starts).detach()
        outputs, state = encode_with_state(layer, inputs, state)
        total = total + loss_of(outputs.values, wanted.values)
    expected = train_alone(layer, xs, targets, steps)
    assert_close(total, expected, check_dtype=False)
    if total.requires_grad:
        sources = [*layer.parameters(), *(x for x in xs if len(x))]
        found, right = (torch.autograd.grad(loss, sources, allow_unused=True) for loss in (total, expected))
        assert_close(found, right)


@pytest.mark.parametrize("layer", [nn.LSTM(2, 3), nn.GRU(2, 3, num_layers=2), nn.Sequential(nn.RNN(2, 3))])
def test_a_lane_never_sees_its_former_sequence(layer: Any) -> None:
    poison, x, y = torch.full((5, 2), float("nan")), torch.randn(7, 2), torch.randn(20, 2)
    xs = [poison, x, y, poison]
    found: dict[int, list[Tensor]] = {0: [], 1: [], 2: [], 3: []}
    state = None
    with torch.no_grad():
        for chunk in chunks_of([5, 7, 20, 5], lanes=2, steps=3):
            state = None if state is None else state.reset(chunk.starts)
            outputs, state = encode_with_state(layer, chunk.cut(xs), state)
            for i, output in zip(chunk.sequences, outputs, strict=True):
                found[i].append(output)
    assert_close([torch.cat(found[i]) for i in (1, 2)], encode(layer, [x, y]))
    assert torch.cat(found[0]).isnan().all(), "which shows that there was something to see"
    assert torch.cat([found[0][0], *found[3]]).isnan().any()


class Files(Sequence[Tensor]):
    """Sequences that are loaded when they are asked for."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        self.loaded.append(index)
        return torch.arange(self.lengths[index])


def test_sequences_may_be_loaded_when_asked_for() -> None:
    files = Files([4, 2, 3])
    first, second = chunks_of(files.lengths, lanes=2, steps=4)
    assert first.cut(files).to_sequences()[0].tolist() == [0, 1, 2, 3]
    assert files.loaded == [0, 1]
    assert second.cut(files).lengths == (3, 0)


def test_a_chunk_can_be_made_by_hand() -> None:
    chunk = Chunk((1, 0), ((2, 4), (0, 1)), (3, 5))
    assert chunk.starts == [1]
    assert [part.tolist() for part in chunk.cut([torch.arange(3), torch.arange(5)])] == [[2, 3], [0]]


@pytest.mark.parametrize(
    ("lengths", "options", "kind", "message"),
    [
        ([3, -1], {}, SeqbatchValueError, "`lengths[1]` must be at least 0; got -1."),
        ([3, 1.5], {}, SeqbatchTypeError, "`lengths[1]` must be an integer; got 1.5."),
        (5, {}, SeqbatchTypeError, "`lengths` must be a sequence of integers or an integer Tensor; got an int."),
        ([3], {"lanes": 0}, SeqbatchValueError, "`lanes` must be at least 1; got 0."),
        ([3], {"lanes": 2.0}, SeqbatchTypeError, "`lanes` must be an integer; got 2.0."),
        ([3], {"steps": -4}, SeqbatchValueError, "`steps` must be at least 1; got -4."),
        ([3], {"steps": True}, SeqbatchTypeError, "`steps` must be an integer; got True."),
        (
            [torch.zeros(3, 5)],
            {},
            SeqbatchTypeError,
            "`lengths` must be integers; got sequences. "
            "Pass [len(x) for x in sequences], and the sequences to chunk.cut.",
        ),
        (SequenceBatch(torch.zeros(3), [1, 2]), {}, SeqbatchTypeError, "`lengths` must be integers; got sequences."),
    ],
)
def test_errors_of_chunks_of(lengths: Any, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        chunks_of(lengths, **{"lanes": 2, "steps": 2, **options})


@pytest.mark.parametrize(
    ("cut_from", "kind", "message"),
    [
        ([torch.zeros(3)], SeqbatchValueError, "`sequences` must be 2 sequences, as `lengths` of chunks_of; got 1."),
        (
            [torch.zeros(3), torch.zeros(4)],
            SeqbatchValueError,
            "`sequences[1]` must have 5 steps, as `lengths` of chunks_of; got 4.",
        ),
        ([torch.zeros(3), [0] * 5], SeqbatchTypeError, "`sequences[1]` must be a Tensor; got a list."),
        ([torch.zeros(3), torch.zeros(5, 2)], SeqbatchValueError, "must have features (), as sequences[0]; got (2,)."),
    ],
)
def test_errors_of_cut(cut_from: Any, kind: type[Exception], message: str) -> None:
    chunk = chunks_of([3, 5], lanes=2, steps=4)[0]
    with pytest.raises(kind, match=re.escape(message)):
        chunk.cut(cut_from)
