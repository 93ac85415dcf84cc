"""chunks_of: lays long sequences of unequal length out in lanes, for truncated back-propagation through time."""

import heapq
from collections.abc import Sequence

import attrs
from torch import Tensor

from seqbatch._batch import SequenceBatch
from seqbatch._checks.arguments import at_least, lengths_of, require_steps
from seqbatch._checks.grammar import complaint, counted
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError


@attrs.frozen
class Chunk:
    """The part that each lane reads next: some steps of one sequence, or none if the lane has ended.

    Args:
        sequences: `(lanes,)`: the index of the sequence that each lane reads, or has read last.
        spans: `(lanes,)`, in steps: the first step to read of it, and the step to stop before.
        lengths: `(number of sequences,)`, in steps: the lengths of all sequences, each as a whole.

    Attributes:
        sequences: as given.
        spans: as given.
        lengths: as given.

    >>> chunks_of([3, 5], lanes=2, steps=4)[1]
    Chunk(sequences=(0, 1), spans=((3, 3), (4, 5)))
    """

    __module__ = "seqbatch.data"  # so that errors and pickles do not hold the layout of files
    sequences: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...] = attrs.field(repr=False)

    @property
    def starts(self) -> list[int]:
        """The lanes in which a sequence begins, for `state.reset`."""
        return [lane for lane, (begin, _) in enumerate(self.spans) if begin == 0]

    def cut(self, sequences: Sequence[Tensor]) -> SequenceBatch:
        """Select the steps of this chunk from all sequences: inputs, targets, or anything with a row for each step.

        Args:
            sequences: a SequenceBatch or a list of Tensors `(steps, *features)`, of the lengths that were passed to
                `chunks_of`; or any other Sequence of these, which may load each on access.

        Returns:
            a batch of one sequence for each lane, copied, through which gradients flow.

        Raises:
            SeqbatchTypeError: a sequence of this chunk is not a Tensor.
            SeqbatchValueError: there are more or fewer sequences, or one of this chunk has another length.

        >>> batch = SequenceBatch(torch.arange(8), [3, 5])
        >>> [chunk.cut(batch).to_sequences() for chunk in chunks_of(batch.lengths, lanes=2, steps=4)]
        [[tensor([0, 1, 2]), tensor([3, 4, 5, 6])], [tensor([], dtype=torch.int64), tensor([7])]]
        """
        if len(sequences) != len(self.lengths):
            must = f"be {counted(len(self.lengths), 'sequence')}, as `lengths` of chunks_of"
            raise complaint(SeqbatchValueError, "sequences", must, len(sequences))
        parts = []
        for i, (begin, end) in zip(self.sequences, self.spans, strict=True):
            sequence = require_steps(f"sequences[{i}]", sequences[i])
            if len(sequence) != self.lengths[i]:
                must = f"have {counted(self.lengths[i], 'step')}, as `lengths` of chunks_of"
                raise complaint(SeqbatchValueError, f"sequences[{i}]", must, len(sequence))
            parts.append(sequence[begin:end])
        return SequenceBatch.from_sequences(parts)


def chunks_of(lengths: Sequence[int] | Tensor, *, lanes: int, steps: int) -> list[Chunk]:
    """Lay long sequences of unequal length out in lanes, for truncated back-propagation through time.

    Each lane reads one sequence after another, some steps at a time. A part ends with its sequence, and the next chunk
    of this lane begins another one; `chunk.starts` lists the lanes that do. Every step of every sequence is in exactly
    one chunk. An empty sequence is in none.

    The lanes depend on the lengths alone. The longest sequence comes first, and each goes to the lane that has the
    least to read, so that lanes end at about the same time. A lane reads its sequences in the order given. For other
    chunks in each epoch, shuffle the sequences.

    Args:
        lengths: `(number of sequences,)`, integers, in steps.
        lanes: the most sequences that are read side by side; empty ones have no lane. If every sequence has a lane of
            its own, each lane reads the sequence of its own index.
        steps: the most steps of each sequence in a chunk.

    Returns:
        the chunks in order, all of the same number of lanes; an empty list if all sequences are empty.

    Raises:
        SeqbatchTypeError: `lengths`, `lanes` or `steps` are not integers.
        SeqbatchValueError: a length is negative, or `lanes` or `steps` is less than 1.

    Source: Williams and Peng, 1990, An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
    Trajectories; for the lanes Graham, 1969, Bounds on Multiprocessing Timing Anomalies.

    >>> xs, lstm, state = [torch.randn(30, 5), torch.randn(50, 5), torch.randn(10, 5)], nn.LSTM(5, 3), None
    >>> for chunk in chunks_of([len(x) for x in xs], lanes=2, steps=20):
    ...     if state is not None:
    ...         state = state.reset(chunk.starts).detach()
    ...     outputs, state = encode_with_state(lstm, chunk.cut(xs), state)
    ...     print(chunk.sequences, outputs.lengths)
    (0, 1) (20, 20)
    (0, 1) (10, 20)
    (2, 1) (10, 10)
    """
    if isinstance(lengths, Sequence) and any(isinstance(one, Tensor) and one.dim() for one in lengths):
        remedy = "Pass [len(x) for x in sequences], and the sequences to chunk.cut."
        raise complaint(SeqbatchTypeError, "lengths", "be integers", "sequences", remedy)
    whole = lengths_of("lengths", lengths)
    lanes, steps = at_least("lanes", lanes, 1), at_least("steps", steps, 1)
    parts = [
        [(i, begin, min(begin + steps, whole[i])) for i in lane for begin in range(0, whole[i], steps)]
        for lane in _assign_to_lanes([-(-length // steps) for length in whole], lanes)
    ]
    chunks = []
    for t in range(max(map(len, parts), default=0)):
        # A lane that has ended reads no steps of its last sequence, because the batch needs the features.
        rows = [lane[t] if t < len(lane) else (lane[-1][0], lane[-1][2], lane[-1][2]) for lane in parts]
        chunks.append(Chunk(tuple(i for i, _, _ in rows), tuple((begin, end) for _, begin, end in rows), whole))
    return chunks


def _assign_to_lanes(counts: list[int], lanes: int) -> list[list[int]]:
    """Assign sequences to lanes by their numbers of chunks, and return those of each lane; no lane is empty."""
    filled: list[list[int]] = [[] for _ in range(min(lanes, len(counts)))]
    loads = [(0, lane) for lane in range(len(filled))]
    for i in sorted(range(len(counts)), key=counts.__getitem__, reverse=True):
        if counts[i]:
            load, lane = loads[0]
            heapq.heapreplace(loads, (load + counts[i], lane))
            filled[lane].append(i)
    return sorted(sorted(lane) for lane in filled if lane)
