"""The law Memory: memory grows with the steps of a batch, not with its padded size."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch.testing._comparison import Run, as_real, by_each_function


def check_memory(
    layer: nn.Module,
    make: Callable[[int], Tensor],
    *,
    times: float = 50,
    ones: int = 511,
    longest: int = 512,
    least: int = 0,
) -> None:
    """Law Memory: forward and backward memory grows with the steps, not with batch x longest.

    The peak for many sequences of one step beside a long one is compared with the peak for the long one alone, both per
    step. So the size of the layer does not matter. A right encoder takes about as much. It takes a few times as much if
    every sequence gets a border, as in a convolution. One that pads takes 256 times as much.

    Args:
        layer: as for `check_alone`.
        make: from a number of steps to a Tensor `(steps, *features)`.
        times: the limit of the peak per step, relative to that of the long sequence alone.
        ones: the number of sequences of one step.
        longest: the steps of the long sequence.
        least: the fewest steps that the layer takes; all steps are multiplied by it.

    Raises:
        AssertionError: the law is broken.

    >>> check_memory(nn.GRU(5, 3), lambda steps: torch.randn(steps, 5))
    """
    lengths = [max(least, 1) * steps for steps in [1] * ones + [longest]]

    def check(run: Run) -> None:
        peaks = [peak_by_step(layer, SequenceBatch(make(sum(some)), some), run) for some in (lengths, lengths[-1:])]
        found = peaks[0] / peaks[1]
        what = "times what the longest sequence takes by itself, by the step"
        assert found <= times, f"a peak of {found:.1f} {what}; at most {times} are right"

    by_each_function(layer, check)


def peak_by_step(layer: nn.Module, batch: SequenceBatch, run: Run) -> float:
    """Measure the bytes in use at the peak of forward and backward, per step of the batch."""
    return peak(lambda: as_real(run(layer, batch)[0].values).sum().backward()) / batch.total_steps


def peak(call: Callable[[], object]) -> int:
    """Measure the bytes in use at the peak of a call, beyond those before it."""
    # Not `torch.profiler.profile`, because it builds a tree of operators, which takes ten times as long as the layer.
    recorder: Any = torch.autograd.profiler.profile(use_kineto=True, profile_memory=True)
    with recorder:
        call()
    # Not `recorder.function_events`, because it attributes allocations to operators and drops their events.
    events = sorted(recorder.kineto_results.events(), key=lambda event: event.start_ns())
    return max(accumulate(int(event.nbytes()) for event in events if event.name() == "[memory]"))
