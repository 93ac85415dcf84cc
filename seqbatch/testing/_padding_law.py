"""The law Padding: neither padding nor another sequence affects a sequence."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch.testing._comparison import Run, assert_alike, by_each_function, gradients, select, tensors_of
from seqbatch.testing._oracle import Alone, Sequences, beside_alone, call_alone


def check_padding(
    layer: nn.Module,
    sequences: Sequences,
    *,
    poison: float = float("nan"),
    side: Literal["right", "left"] = "right",
    batch_first: bool = True,
    alone: Alone = call_alone,
) -> None:
    """Law Padding: neither padding nor another sequence reaches a result or a gradient.

    Each sequence in turn is filled with NaN and then with infinity. The results and gradients of the others must stay
    the same. Gradients of the weights are not compared, because there 0 times NaN is right.

    Args:
        layer: as for `check_alone`.
        sequences: Tensors `(steps, *features)` of a floating or complex dtype, leaves that require gradients.
        poison: the value of the padding that they are read from.
        side: the side of the padding.
        batch_first: which axis of the padded tensor is the batch.
        alone: as for `check_alone`.

    Raises:
        AssertionError: the law is broken.
        SeqbatchTypeError: as for `check_alone`.

    >>> check_padding(nn.LSTM(5, 3), [torch.randn(4, 5).requires_grad_(), torch.randn(2, 5).requires_grad_()])
    """

    def check(run: Run) -> None:
        _check_read(layer, run, sequences, poison, {"batch_first": batch_first, "padding_side": side}, alone)
        _check_neighbours(layer, run, sequences)

    by_each_function(layer, check)


def _check_read(
    layer: nn.Module, run: Run, sequences: Sequences, poison: float, options: dict[str, Any], alone: Alone
) -> None:
    """Read the sequences from a poisoned padded tensor, and check results and gradients."""
    batch = SequenceBatch.from_sequences(sequences).detach()
    total = batch.max_length + 2
    padded = batch.to_padded(padding_value=poison, total_length=total, **options).requires_grad_()
    results = run(layer, SequenceBatch.from_padded(padded, batch.lengths, **options))
    found, wanted = beside_alone(layer, results, sequences, None, alone)
    assert_alike(found, wanted)
    weights = list(layer.parameters())
    gradient, *others = gradients(found, [padded, *weights])
    expected = gradients(wanted, [*sequences, *weights])
    read = SequenceBatch.from_padded(gradient, batch.lengths, **options).to_sequences()
    assert_alike([*read, *others], expected, "of gradients")
    assert not gradient[~batch.mask(total_length=total, **options)].any(), "a gradient reaches padding"


def _check_neighbours(layer: nn.Module, run: Run, sequences: Sequences) -> None:
    """Fill each sequence in turn with NaN and infinity, and check that the results of the others stay the same."""
    outputs, final, back = _run_there_and_back(layer, run, sequences)
    for poisoned in [i for i, sequence in enumerate(sequences) if len(sequence)]:
        others = [i for i in range(len(sequences)) if i != poisoned]
        for poison in (float("nan"), float("inf")):
            given = list(sequences)
            given[poisoned] = torch.full_like(given[poisoned], poison).requires_grad_()
            found, found_final, found_back = _run_there_and_back(layer, run, given)
            told = f"{poison} in sequence {poisoned} reaches"
            assert_alike([found[i] for i in others], [outputs[i] for i in others], f"{told} outputs of others")
            left, wanted = (tensors_of(select(one, others)) for one in (found_final, final))
            assert_alike(left, wanted, f"{told} states of others")
            assert_alike([found_back[i] for i in others], [back[i] for i in others], f"{told} gradients of others")


def _run_there_and_back(layer: nn.Module, run: Run, sequences: Sequences) -> tuple[list[Tensor], Any, list[Tensor]]:
    """Return the outputs and the state, and their gradients."""
    outputs, final = run(layer, sequences)
    return outputs, final, gradients([*outputs, *tensors_of(final)], sequences)
