"""Hypothesis strategies: lengths of six patterns, and lists of sequences of such lengths."""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

_ragged = st.lists(st.integers(1, 7), min_size=2, max_size=6)

# Both, because on CPU PyTorch has other kernels for equal lengths than for ragged ones.
PATTERNS: dict[str, st.SearchStrategy[list[int]]] = {
    "equal": st.builds(lambda length, number: [length] * number, st.integers(1, 6), st.integers(1, 5)),
    "sorted": _ragged.map(lambda lengths: sorted(lengths, reverse=True)),
    "unsorted": _ragged.flatmap(st.permutations),
    "with zeros": _ragged.flatmap(lambda lengths: st.permutations([0, *lengths, 0])),
    "with ones": _ragged.flatmap(lambda lengths: st.permutations([1, *lengths, 1])),
    "all zero": st.integers(0, 4).map(lambda number: [0] * number),
}


def lengths(*patterns: str, least: int = 0) -> st.SearchStrategy[list[int]]:
    """Return a strategy for the lengths of a batch.

    Args:
        patterns: names out of "equal", "sorted", "unsorted", "with zeros", "with ones" and "all zero"; by default all.
        least: the fewest steps of a sequence; lengths of 0 and 1 become this number.

    Returns:
        lists of integers, in steps.

    Raises:
        KeyError: a pattern does not exist.

    >>> from hypothesis import find
    >>> find(lengths("with ones"), lambda drawn: len(drawn) == 4)
    [1, 1, 1, 1]
    """
    drawn = st.one_of([PATTERNS[name] for name in patterns or PATTERNS])
    # Shifted, because `max` with `least` would make ragged lengths equal.
    return drawn.map(lambda counts: [max(count - 1, 0) + least for count in counts]) if least else drawn


def maker(features: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Callable[[int], Tensor]:
    """Return a function that makes sequences of random values.

    Args:
        features: the shape of one step.
        dtype: a floating or complex dtype.

    Returns:
        a function from steps to a Tensor `(steps, *features)`, a leaf that requires gradients.

    >>> maker((5,))(3).shape
    torch.Size([3, 5])
    """

    def make(steps: int) -> Tensor:
        return torch.randn(steps, *features, dtype=dtype).requires_grad_()

    return make


def sequences(
    make: Callable[[int], Tensor], drawn: st.SearchStrategy[list[int]] | None = None
) -> st.SearchStrategy[list[Tensor]]:
    """Return a strategy for lists of sequences.

    Args:
        make: from a number of steps to a Tensor `(steps, *features)`, as `maker` returns.
        drawn: a strategy for their lengths; by default `lengths()`.

    Returns:
        lists of Tensors.

    >>> from hypothesis import find
    >>> [one.shape for one in find(sequences(maker((5,)), lengths("with ones")), lambda drawn: len(drawn) == 4)]
    [torch.Size([1, 5]), torch.Size([1, 5]), torch.Size([1, 5]), torch.Size([1, 5])]
    """
    return (lengths() if drawn is None else drawn).map(lambda counts: make_all(make, counts))


def make_all(make: Callable[[int], Tensor], counts: list[int]) -> list[Tensor]:
    """Make sequences of the given lengths from a fixed seed, without changing the state of the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [make(count) for count in counts]
