"""The laws of results, each a function that checks one layer on one list of sequences."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch.batch import SequenceBatch
from seqbatch.encode import encode
from seqbatch.state import LSTMState, RNNState
from seqbatch.testing._tensors import gradients, run, tensors_of

Sequences = list[Tensor]
# From a layer, one sequence and the state of it alone, or None, to its output, and for a recurrent layer its state too.
Alone = Callable[[nn.Module, Tensor, Any], Any]


def call_alone(layer: nn.Module, sequence: Tensor, state: Any) -> Any:
    """Call the layer on one sequence, with its state if there is one: the oracle where none is given.

    Recurrent layers of PyTorch are given a batch of one, and their state in PyTorch's layout.
    """
    if not isinstance(layer, nn.RNNBase):
        return layer(sequence) if state is None else layer(sequence, state)
    output, final = layer(
        sequence.unsqueeze(0 if layer.batch_first else 1), None if state is None else state.to_torch()
    )
    kind: Any = LSTMState if isinstance(layer, nn.LSTM) else RNNState
    return output.squeeze(0 if layer.batch_first else 1), kind.from_torch(final, layer)


def check_alone(layer: nn.Module, sequences: Sequences, state: Any = None, *, alone: Alone = call_alone) -> None:
    """Law Alone: each output, state and gradient equals that of the sequence run alone through the plain layer.

    Of a sequence of no steps only the number of steps is checked; `check_empty` checks the rest.

    Args:
        layer: a layer that has an encoder, in a mode in which it draws no random numbers.
        sequences: Tensors `(steps, *features)`, those that require gradients as leaves.
        state: the state to start from, of a recurrent layer; its `select` must take a list of indices.
        alone: the oracle, `(layer, sequence, state) -> output`, or `(output, state)` for a recurrent layer; by default
            it calls the layer, a recurrent one of PyTorch with its state in PyTorch's layout.

    Raises:
        AssertionError: the law is broken.

    >>> check_alone(nn.Linear(5, 3), [torch.randn(4, 5), torch.randn(2, 5)])
    """
    found, wanted = _with_alone(layer, run(layer, sequences, state), sequences, state, alone)
    assert_close(found, wanted)
    sources = [*sequences, *tensors_of(state), *layer.parameters()]
    assert_close(gradients(found, sources), gradients(wanted, sources), msg=lambda told: f"of gradients: {told}")


def _with_alone(
    layer: nn.Module, results: tuple[Any, Any], sequences: Sequences, state: Any, alone: Alone
) -> tuple[list[Tensor], list[Tensor]]:
    """Give the outputs and states of the sequences that have a step, and those of runs of each alone."""
    outputs, final = results
    found, wanted = [], []
    for i, sequence in enumerate(sequences):
        if not len(sequence):
            assert not len(outputs[i]), "a sequence of no steps gives an output of some"
            continue
        result = alone(layer, sequence, None if state is None else state.select([i]))
        output, end = result if final is not None else (result, None)
        found += [outputs[i], *([] if final is None else tensors_of(final.select([i])))]
        wanted += [output, *tensors_of(end)]
    return found, wanted


def check_order(layer: nn.Module, sequences: Sequences, order: list[int], state: Any = None) -> None:
    """Law Order: permuting the sequences, and the state, permutes the results.

    Args:
        layer: as for `check_alone`.
        sequences: Tensors `(steps, *features)`.
        order: the index of each sequence of the permuted list.
        state: the state to start from, of a recurrent layer.

    Raises:
        AssertionError: the law is broken.

    >>> check_order(nn.GRU(5, 3), [torch.randn(4, 5), torch.randn(2, 5)], [1, 0])
    """
    outputs, final = run(layer, sequences, state)
    permuted, permuted_final = run(layer, [sequences[i] for i in order], None if state is None else state.select(order))
    assert_close(permuted, [outputs[i] for i in order])
    if final is not None:
        assert_close(tensors_of(permuted_final), tensors_of(final.select(order)))


def check_padding(
    layer: nn.Module,
    sequences: Sequences,
    *,
    poison: float = float("nan"),
    side: Literal["right", "left"] = "right",
    batch_first: bool = True,
    alone: Alone = call_alone,
) -> None:
    """Law Padding: what stands in padding reaches no result and no gradient.

    Args:
        layer: as for `check_alone`.
        sequences: Tensors `(steps, *features)` of a floating dtype, leaves that require gradients.
        poison: what stands in the padding that they are read out of.
        side: the side of the padding.
        batch_first: which axis of the padded tensor is the batch.
        alone: as for `check_alone`.

    Raises:
        AssertionError: the law is broken.

    >>> check_padding(nn.LSTM(5, 3), [torch.randn(4, 5).requires_grad_(), torch.randn(2, 5).requires_grad_()])
    """
    batch = SequenceBatch.from_sequences(sequences).detach()
    total = batch.max_length + 2
    options: dict[str, Any] = {"batch_first": batch_first, "padding_side": side}
    padded = batch.to_padded(padding_value=poison, total_length=total, **options).requires_grad_()
    results = run(layer, SequenceBatch.from_padded(padded, batch.lengths, **options))
    found, wanted = _with_alone(layer, results, sequences, None, alone)
    assert_close(found, wanted)
    weights = list(layer.parameters())
    gradient, *others = gradients(found, [padded, *weights])
    expected = gradients(wanted, [*sequences, *weights])
    read = SequenceBatch.from_padded(gradient, batch.lengths, **options).to_sequences()
    assert_close([*read, *others], expected, msg=lambda told: f"of gradients: {told}")
    assert not gradient[~batch.mask(total_length=total, **options)].any(), "a gradient reaches padding"


def check_lengths(layer: nn.Module, sequences: Sequences, *, rule: Callable[[int], int] = int) -> None:
    """Law Lengths: outputs have their input's lengths, or those that the layer's rule gives.

    Args:
        layer: as for `check_alone`.
        sequences: Tensors `(steps, *features)`.
        rule: from the steps of a sequence, 1 at least, to those of its output.

    Raises:
        AssertionError: the law is broken.

    >>> check_lengths(nn.Linear(5, 3), [torch.randn(4, 5), torch.randn(0, 5)])
    """
    found = [len(output) for output in encode(layer, sequences)]
    wanted = [rule(len(sequence)) if len(sequence) else 0 for sequence in sequences]
    assert found == wanted, f"lengths must be {wanted}; got {found}"


def check_empty(layer: nn.Module, sequences: Sequences, state: Any = None) -> None:
    """Law Empty: a sequence of no steps gives none, and its state is the initial one; others do not see it.

    Args:
        layer: as for `check_alone`.
        sequences: Tensors `(steps, *features)`, one at least; those of no steps are set between them.
        state: the state to start from, of a recurrent layer; its `select` and `reset` must take a list of indices.

    Raises:
        AssertionError: the law is broken.

    >>> check_empty(nn.GRU(5, 3), [torch.randn(4, 5), torch.randn(2, 5)])
    """
    assert sequences, "one sequence at least, to know the features"
    there = [*range(len(sequences))]
    middle = len(there) // 2
    # At the front, in the middle and at the end, for an index that runs off the values does so at the end only.
    places: list[int | None] = [None, *there[:middle], None, *there[middle:], None]
    empty = [i for i, place in enumerate(places) if place is None]
    full = [i for i, place in enumerate(places) if place is not None]
    start = None if state is None else state.select([place or 0 for place in places])
    nothing = sequences[0][:0]
    outputs, final = run(layer, [nothing if place is None else sequences[place] for place in places], start)
    assert len(outputs) == len(places), "another number of sequences"
    assert [len(outputs[i]) for i in empty] == [0, 0, 0], "a sequence of no steps gives an output of some"
    without, without_final = run(layer, sequences, state)
    assert_close([outputs[i] for i in full], without)
    if final is not None:
        initial = final.reset(empty) if start is None else start
        assert_close(tensors_of(final.select(empty)), tensors_of(initial.select(empty)))
        assert_close(tensors_of(final.select(full)), tensors_of(without_final))


def check_memory(
    layer: nn.Module, make: Callable[[int], Tensor], *, times: float, ones: int = 511, longest: int = 512
) -> None:
    """Law Memory: forward and backward memory grows with the steps, not with batch x longest.

    Args:
        layer: as for `check_alone`.
        make: from a number of steps to a Tensor `(steps, *features)`.
        times: how many times the bytes of the values may be in use at the peak.
        ones: how many sequences of one step there are.
        longest: the steps of the one beside them.

    Raises:
        AssertionError: the law is broken.

    >>> check_memory(nn.GRU(5, 3), lambda steps: torch.randn(steps, 5), times=60)
    """
    lengths = [1] * ones + [longest]
    batch = SequenceBatch(make(sum(lengths)), lengths)
    with torch.profiler.profile(profile_memory=True) as profile:
        encode(layer, batch).values.sum().backward()
    # Not `profile.events()`, which leaves out what an operator allocates and counts it to the operator.
    recorded: Any = profile.profiler
    events = sorted(recorded.kineto_results.events(), key=lambda event: event.start_ns())
    peak = max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    found = peak / batch.values.nbytes
    assert found <= times, f"a peak of {found:.1f} times the values; at most {times} are right"
