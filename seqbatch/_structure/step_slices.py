"""Slices of the steps of each sequence: which steps they hold, and the plan that gathers these."""

from torch import Tensor

from seqbatch._checks.indices import StepSlice
from seqbatch._structure.plans import Plan, PlanWithLengths, ranges
from seqbatch._structure.sequence_lengths import Lengths, int64_tensor


def slice_layout(lengths: Lengths, steps: StepSlice, rows: tuple[int, ...] | None) -> PlanWithLengths:
    """Lay out a slice of the steps of all sequences, or of chosen ones, in the order chosen."""
    counts, starts = lengths.tensor, lengths.offsets[:-1]
    if rows is not None:
        chosen = int64_tensor(rows)
        counts, starts = counts[chosen], starts[chosen]
    first, numbers = slice_steps_of(counts, steps)
    sizes = tuple(numbers.tolist())
    take = ranges(starts + first, numbers, sum(sizes), step=steps.step)
    is_repeated = rows is not None and len({*rows}) < len(rows)
    plan = Plan.copy(take) if is_repeated else Plan.gather(take, lengths.total)
    return PlanWithLengths.change(plan, lengths, sizes)


def slice_steps_of(lengths: Tensor, steps: StepSlice) -> tuple[Tensor, Tensor]:
    """Compute the first step that a slice holds of each sequence, and the number of them: `(batch,)`, int64."""
    first = _clamped(lengths, steps.start)
    end = lengths if steps.stop is None else _clamped(lengths, steps.stop)
    return first, ((end - first + (steps.step - 1)) // steps.step).clamp(min=0)


def _clamped(lengths: Tensor, bound: int) -> Tensor:
    """Return a bound of a slice counted from the front, from 0 to the length."""
    return (lengths + bound).clamp(min=0) if bound < 0 else lengths.clamp(max=bound)
