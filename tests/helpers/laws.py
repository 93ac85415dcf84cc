"""The laws of `seqbatch.testing` with the oracle of these tests, and the law Round trip, which is of batches."""

from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any

import torch
from hypothesis import settings
from reference import run_alone
from torch import Tensor, nn

from seqbatch import SequenceBatch, is_recurrent, testing
from seqbatch._encode.registry import find_encoder
from seqbatch.testing._comparison import Run, as_real, by_each_function, tensors_of
from seqbatch.testing._memory_law import peak_by_step

__all__ = ["tensors_of"]

Sequences = list[Tensor]


def fewer_examples(times: int) -> settings:
    """Run fewer examples of a test whose examples take long, or show less than those of the law Alone.

    An example of the law Padding takes as long as a dozen others, because each sequence is filled in turn. A fourth is
    enough for a layer of one type, which has few options. With several types, each must come in every pattern.
    """
    return settings(max_examples=max(5, settings().max_examples // times))


def seed(number: int) -> None:
    """Seed random numbers of the CPU only: `torch.manual_seed` keeps the stack for other devices, which takes 1 ms."""
    torch.default_generator.manual_seed(number)


def alone(layer: nn.Module, sequence: Tensor, state: Any) -> Any:
    """Run one sequence by the oracle."""
    outputs, final = run_alone(layer, [sequence], None if state is None else tensors_of(state))
    return (outputs[0], final) if is_recurrent(layer) else outputs[0]


check_alone = partial(testing.check_alone, alone=alone)
check_called_as_itself = partial(testing.check_called_as_itself, alone=alone)
check_order, check_lengths, check_empty = testing.check_order, testing.check_lengths, testing.check_empty
check_unmodified, check_refused = testing.check_unmodified, testing.check_refused


def check_stepwise(layer: nn.Module, sequences: Sequences) -> None:
    """Check the law for a layer that must be registered as stepwise."""
    assert find_encoder(layer).is_stepwise
    testing.check_stepwise(layer, sequences)


def check_padding(layer: nn.Module, sequences: Sequences, poison: float, side: Any, batch_first: bool) -> None:
    testing.check_padding(layer, sequences, poison=poison, side=side, batch_first=batch_first, alone=alone)


def check_memory(layer: nn.Module, features: int, times: float, ones: int = 511, longest: int = 512) -> None:
    """Check the peak of memory against the bytes of the values, of single precision, to pin what each layer takes."""
    batch = SequenceBatch(torch.randn(ones + longest, features), [1] * ones + [longest])

    def check(run: Run) -> None:
        found = peak_by_step(layer, batch, run) * batch.total_steps / batch.values.nbytes
        assert found <= times, f"a peak of {found:.1f} times the values; at most {times} are right"

    by_each_function(layer, check)


def _padded(side: Any, batch_first: bool, masked: bool) -> Callable[[SequenceBatch], SequenceBatch]:
    def there_and_back(batch: SequenceBatch) -> SequenceBatch:
        options: Any = {"batch_first": batch_first, "padding_side": side}
        padded = batch.to_padded(total_length=batch.max_length + 1, **options)
        if not masked:
            return SequenceBatch.from_padded(padded, batch.lengths, **options)
        mask = batch.mask(total_length=batch.max_length + 1, **options)
        return SequenceBatch.from_mask(padded, mask, batch_first=batch_first)

    return there_and_back


def _packed(batch: SequenceBatch) -> SequenceBatch:
    """Leave out the empty sequences, which this layout cannot hold, and insert them again."""
    there = [i for i, length in enumerate(batch.lengths) if length]
    back = SequenceBatch.from_packed(batch[there].to_packed())
    assert back.lengths == tuple(batch.lengths[i] for i in there), "other lengths by way of packed"
    return SequenceBatch(back.values, batch.lengths)


def _listed(batch: SequenceBatch) -> SequenceBatch:
    """Make a list of no sequences hold their features too."""
    return SequenceBatch.from_sequences(batch.to_sequences() or [batch.values])[: batch.batch_size]


# From a batch to a layout, and back to a batch.
LAYOUTS: dict[str, Callable[[SequenceBatch], SequenceBatch]] = {
    "padded on the right, batch first": _padded("right", batch_first=True, masked=False),
    "padded on the right, time first": _padded("right", batch_first=False, masked=False),
    "padded on the left, batch first": _padded("left", batch_first=True, masked=False),
    "padded on the left, time first": _padded("left", batch_first=False, masked=False),
    "masked, batch first": _padded("right", batch_first=True, masked=True),
    "masked, time first": _padded("left", batch_first=False, masked=True),
    "packed": _packed,
    "nested": lambda batch: SequenceBatch.from_nested(batch.to_nested()),
    "offsets": lambda batch: SequenceBatch.from_offsets(batch.values, batch.offsets),
    "sequences": _listed,
}


def check_round_trip(batch: SequenceBatch) -> None:
    """From each layout to each other and back is exact, in values and gradients."""
    halfway = {name: there_and_back(batch) for name, there_and_back in LAYOUTS.items()}
    for first, second in permutations(LAYOUTS, 2):
        back = LAYOUTS[second](halfway[first])
        way = f"by way of {first} and {second}"
        assert back.lengths == batch.lengths, f"other lengths {way}"
        assert_same_bits(back.values, batch.values, f"other values {way}")
        if batch.values.requires_grad:
            weights = torch.arange(1, 1 + batch.values.numel()).cos().view(batch.values.shape).to(batch.dtype)
            assert back.values.requires_grad, f"no gradient {way}"
            (gradient,) = torch.autograd.grad(back.values, batch.values, weights, retain_graph=True)
            assert_same_bits(gradient, weights, f"another gradient {way}")


def assert_same_bits(found: Tensor, wanted: Tensor, message: str = "other values") -> None:
    """Compare bit by bit, even in dtypes that PyTorch cannot compare."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), message
    found, wanted = (as_real(one).reshape(-1).view(torch.uint8) for one in (found, wanted))
    assert torch.equal(found, wanted), message
