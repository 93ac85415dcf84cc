"""The laws of results, each a function that checks one layer on one list of sequences."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._encode import encode
from seqbatch._encode.registry import find_encoder, is_recurrent
from seqbatch.testing._comparison import Run, assert_alike, by_each_function, gradients, run_encoder, select, tensors_of
from seqbatch.testing._oracle import Alone, Sequences, beside_alone, call_alone


def check_alone(layer: nn.Module, sequences: Sequences, state: Any = None, *, alone: Alone = call_alone) -> None:
    """Law Alone: each output, state and gradient equals that of the sequence run alone through the plain layer.

    For an empty sequence, only the length of the output is checked; `check_empty` checks the rest.

    Args:
        layer: a layer that has an encoder, in a mode in which it draws no random numbers.
        sequences: Tensors `(steps, *features)`, those that require gradients as leaves.
        state: the state to start from, of a recurrent layer. A state needs `select`, which takes a list of indices.
        alone: the oracle, `(layer, sequence, state) -> output`, or `(output, state)` for a recurrent layer; by default
            it calls the layer, and one of PyTorch in its own form.

    Raises:
        AssertionError: the law is broken.
        SeqbatchTypeError: a state has no `select`, or the oracle does not return a pair for a recurrent layer.

    >>> check_alone(nn.Linear(5, 3), [torch.randn(4, 5), torch.randn(2, 5)])
    """
    results = run_encoder(layer, sequences, state)
    found, wanted = beside_alone(layer, results, sequences, state, alone)
    assert_alike(found, wanted)
    if is_recurrent(layer) and state is None:
        _check_outputs(layer, sequences, results[0])
    sources = [*sequences, *tensors_of(state), *layer.parameters()]
    assert_alike(gradients(found, sources), gradients(wanted, sources), "of gradients")


def _check_outputs(layer: nn.Module, sequences: Sequences, wanted: list[Tensor]) -> None:
    """Check that `encode` returns the outputs of `encode_with_state`, with their gradients."""
    told = "encode returns other outputs than encode_with_state"
    found = encode(layer, sequences)
    assert_alike(found, wanted, told)
    sources = [*sequences, *layer.parameters()]
    assert_alike(gradients(found, sources), gradients(wanted, sources), f"{told}, of gradients")


def check_order(layer: nn.Module, sequences: Sequences, order: list[int], state: Any = None) -> None:
    """Law Order: permuting the sequences, and the state, permutes the results.

    Args:
        layer: as for `check_alone`.
        sequences: Tensors `(steps, *features)`.
        order: the index of each sequence of the permuted list.
        state: as for `check_alone`.

    Raises:
        AssertionError: the law is broken.
        SeqbatchTypeError: a state has no `select`.

    >>> check_order(nn.GRU(5, 3), [torch.randn(4, 5), torch.randn(2, 5)], [1, 0])
    """

    def check(run: Run) -> None:
        outputs, final = run(layer, sequences, state)
        permuted, permuted_final = run(layer, [sequences[i] for i in order], select(state, order))
        assert_alike(permuted, [outputs[i] for i in order])
        assert_alike(tensors_of(permuted_final), tensors_of(select(final, order)))

    by_each_function(layer, check, state)


def check_lengths(layer: nn.Module, sequences: Sequences, *, rule: Callable[[int], int] = int) -> None:
    """Law Lengths: outputs have their input's lengths, or those that the layer's rule returns.

    Args:
        layer: as for `check_alone`.
        sequences: Tensors `(steps, *features)`.
        rule: from the steps of a sequence, at least 1, to those of its output.

    Raises:
        AssertionError: the law is broken.

    >>> check_lengths(nn.Linear(5, 3), [torch.randn(4, 5), torch.randn(0, 5)])
    """

    def check(run: Run) -> None:
        found = [len(output) for output in run(layer, sequences)[0]]
        wanted = [rule(len(sequence)) if len(sequence) else 0 for sequence in sequences]
        assert found == wanted, f"lengths must be {wanted}; got {found}"

    by_each_function(layer, check)


def check_stepwise(layer: nn.Module, sequences: Sequences) -> None:
    """Law Stepwise: a layer registered with `stepwise=True` returns the same for each step in a sequence of its own.

    Other layers are not checked.

    Args:
        layer: as for `check_alone`.
        sequences: Tensors `(steps, *features)`.

    Raises:
        AssertionError: the law is broken.

    >>> check_stepwise(nn.Linear(5, 3), [torch.randn(4, 5), torch.randn(2, 5)])
    """
    if find_encoder(layer).is_stepwise:
        wanted = [step for output in encode(layer, sequences) for step in output.split(1)]
        found = encode(layer, [step for sequence in sequences for step in sequence.split(1)])
        assert len(found) == len(wanted), "it is registered as stepwise, but changes the number of steps"
        assert_alike(found, wanted, "it is registered as stepwise, but a step by itself gets another output")


def check_empty(layer: nn.Module, sequences: Sequences, state: Any = None) -> None:
    """Law Empty: an empty sequence has an empty output, its state is the initial one, and others do not see it.

    The initial state is the one in `state`. Without that, it is the one from which the layer returns what it returns
    without a state, zeros or learned. If all sequences are empty, or the batch is, outputs and states have their usual
    features and dtype.

    Args:
        layer: as for `check_alone`.
        sequences: Tensors `(steps, *features)`, at least one; empty ones are inserted between them.
        state: as for `check_alone`.

    Raises:
        AssertionError: the law is broken.
        SeqbatchTypeError: a state has no `select`.

    >>> check_empty(nn.GRU(5, 3), [torch.randn(4, 5), torch.randn(2, 5)])
    """
    assert sequences, "one sequence at least, to know the features"
    by_each_function(layer, lambda run: _check_empty(layer, run, sequences, state), state)


def _check_empty(layer: nn.Module, run: Run, sequences: Sequences, state: Any) -> None:
    """Check the law for one function that runs the layer."""
    there = [*range(len(sequences))]
    middle = len(there) // 2
    # At the front, in the middle and at the end, because an index out of range shows only at the end.
    places: list[int | None] = [None, *there[:middle], None, *there[middle:], None]
    empty = [i for i, place in enumerate(places) if place is None]
    full = [i for i, place in enumerate(places) if place is not None]
    start = select(state, [place or 0 for place in places])
    nothing = sequences[0][:0]
    outputs, final = run(layer, [nothing if place is None else sequences[place] for place in places], start)
    assert len(outputs) == len(places), "another number of sequences"
    assert [len(outputs[i]) for i in empty] == [0, 0, 0], "the output of an empty sequence is not empty"
    without, without_final = run(layer, sequences, state)
    assert_alike([outputs[i] for i in full], without)
    assert_alike(tensors_of(select(final, full)), tensors_of(without_final))
    left, begin = select(final, empty), select(start, empty)
    _check_initial(layer, sequences, (without, without_final), left, begin)
    _check_only_empty(layer, run, nothing, without[0], left, begin)


def _check_initial(
    layer: nn.Module, sequences: Sequences, wanted: tuple[list[Tensor], Any], left: Any, start: Any
) -> None:
    """Check that the states of three empty sequences are the given ones, or equivalent to no state."""
    told = "the state of an empty sequence is not the initial one"
    if start is not None:
        assert_alike(tensors_of(left), tensors_of(start), told)
    elif left is not None:
        assert_alike(tensors_of(left), tensors_of(select(left, [0, 0, 0])), told)
        outputs, final = run_encoder(layer, sequences, select(left, [0] * len(sequences)))
        assert_alike([*outputs, *tensors_of(final)], [*wanted[0], *tensors_of(wanted[1])], told)


def _check_only_empty(layer: nn.Module, run: Run, nothing: Tensor, output: Tensor, left: Any, start: Any) -> None:
    """Check the results of three empty sequences and of an empty batch, by one output and the states of three."""
    for count in (3, 0):
        chosen = [*range(count)]
        found, final = run(layer, SequenceBatch(nothing, [0] * count), select(start, chosen))
        what = f"{count} empty sequences"
        assert found.lengths == (0,) * count, f"the outputs of {what} are not empty"
        kinds = [(tuple(one.shape[1:]), one.dtype) for one in (found.values, output)]
        assert kinds[0] == kinds[1], f"the outputs of {what} must have features and dtype {kinds[1]}; got {kinds[0]}"
        assert_alike(tensors_of(final), tensors_of(select(left, chosen)), f"the state of {what}")
