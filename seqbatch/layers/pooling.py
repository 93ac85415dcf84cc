"""Pools: layers that reduce each sequence to one step; an empty sequence stays empty."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seqbatch import _ops
from seqbatch._batch import SequenceBatch
from seqbatch._encode.registry import register_encoder
from seqbatch._encoders._hooked_call import call_as_itself
from seqbatch._encoders._layer_checks import register_features, require_device, require_dtype, require_features
from seqbatch.layers._argument_checks import as_batch, refuse_own_forward, size


class _Pool(nn.Module):
    """The base class of layers that reduce each sequence to one step."""

    def forward(self, sequence: Tensor) -> Tensor:
        """Run on one sequence.

        Args:
            sequence: `(steps, *features)`.

        Returns:
            `(1, *features)`, or `(0, *features)` for an empty sequence; gradients flow.

        Raises:
            SeqbatchTypeError: it is not a Tensor, or of a dtype that the pool does not take.
            SeqbatchValueError: it has no dimension of steps.
        """
        return _pooled(self, as_batch(sequence))


class SumPool(_Pool):
    """Sums the steps of each sequence, as `SequenceBatch.sum`.

    A sequence becomes one of one step, `(1, *features)`; an empty one stays empty. Integers and bools become int64.

    >>> encode(SumPool(), [torch.tensor([1, 2]), torch.tensor([3])])
    [tensor([3]), tensor([3])]
    """


class MeanPool(_Pool):
    """Averages the steps of each sequence, as `SequenceBatch.mean`; the dtype must be floating or complex.

    A sequence becomes one of one step, `(1, *features)`; an empty one stays empty.

    >>> encode(MeanPool(), [torch.tensor([1.0, 2.0]), torch.tensor([3.0])])
    [tensor([1.5000]), tensor([3.])]
    """


class MaxPool(_Pool):
    """Takes the largest step of each sequence, feature by feature, as `SequenceBatch.max`; complex has no largest.

    A sequence becomes one of one step, `(1, *features)`; an empty one stays empty. Steps that are equally
    large share the gradient.

    >>> encode(MaxPool(), [torch.tensor([1, 2]), torch.tensor([3])])
    [tensor([2]), tensor([3])]
    """


class MinPool(_Pool):
    """Takes the smallest step of each sequence, feature by feature, as `SequenceBatch.min`; complex has no smallest.

    A sequence becomes one of one step, `(1, *features)`; an empty one stays empty. Steps that are equally
    small share the gradient.

    >>> encode(MinPool(), [torch.tensor([1, 2]), torch.tensor([3])])
    [tensor([1]), tensor([3])]
    """


class FirstStep(_Pool):
    """Takes the first step of each sequence, as `SequenceBatch.first`.

    A sequence becomes one of one step, `(1, *features)`; an empty one stays empty.

    >>> encode(FirstStep(), [torch.tensor([1, 2]), torch.tensor([3])])
    [tensor([1]), tensor([3])]
    """


class LastStep(_Pool):
    """Takes the last real step of each sequence, as `SequenceBatch.last`.

    A sequence becomes one of one step, `(1, *features)`; an empty one stays empty. In the outputs of a bidirectional
    layer, the backward half has seen only one step there.

    >>> encode(LastStep(), [torch.tensor([1, 2]), torch.tensor([3])])
    [tensor([2]), tensor([3])]
    """


class AttentionPool(_Pool):
    """Averages the steps of each sequence by learned weights.

    The weight of a step is the softmax, over the steps of its sequence, of its product with `query`, a parameter. That
    is initialized to zeros, so that all steps have equal weights before training. A sequence becomes one of one step,
    `(1, features)`; an empty one stays empty.

    Args:
        features: the size of a step.
        device: the device of the query, as for layers of PyTorch.
        dtype: the dtype of the query, as for layers of PyTorch.

    Raises:
        SeqbatchTypeError: `features` is not an integer.
        SeqbatchValueError: it is negative.

    Source: Yang et al., 2016, Hierarchical Attention Networks for Document Classification, without the layer before the
    product. The full form is `nn.Sequential(nn.Linear(...), nn.Tanh(), AttentionPool(...))`.

    >>> xs, ys = encode(AttentionPool(5), [torch.randn(10, 5), torch.randn(7, 5)])
    >>> xs.shape, ys.shape
    (torch.Size([1, 5]), torch.Size([1, 5]))
    """

    def __init__(
        self, features: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.features: int = size("features", features)
        self.query: nn.Parameter = nn.Parameter(torch.zeros(self.features, device=device, dtype=dtype))

    def extra_repr(self) -> str:
        """Return the arguments, which `repr` of the layer shows."""
        return f"{self.features}"


def _attended(layer: AttentionPool, batch: SequenceBatch) -> Tensor:
    shares = batch.map(lambda values: values @ layer.query).softmax()
    return batch.map(lambda values, shares: values * shares[:, None], shares).sum()


# By type of pool: `(layer, batch)` to `(batch, *features)`, where the rows of empty sequences are unused.
_REDUCTIONS: dict[type[nn.Module], Callable[[Any, SequenceBatch], Tensor]] = {
    AttentionPool: _attended,
    FirstStep: lambda layer, batch: batch.first(),
    LastStep: lambda layer, batch: batch.last(),
    MaxPool: lambda layer, batch: batch.max(),
    MeanPool: lambda layer, batch: batch.mean(),
    MinPool: lambda layer, batch: batch.min(),
    SumPool: lambda layer, batch: batch.sum(),
}


def _pooled(layer: nn.Module, batch: SequenceBatch) -> Tensor:
    """Compute the one step of each sequence that is not empty, end to end."""
    reduced = next(_REDUCTIONS[base] for base in type(layer).__mro__ if base in _REDUCTIONS)(layer, batch)
    return _ops.drop_empty(reduced, batch.structure)


@register_encoder(_Pool)  # for its subclasses
def _(layer: _Pool, batch: SequenceBatch) -> SequenceBatch:
    refuse_own_forward(layer, _Pool)
    if isinstance(layer, AttentionPool):
        require_features(batch, (layer.features,), layer, exactly=True)
        require_dtype(batch, layer)
        require_device(batch, layer)
    values, _ = call_as_itself(layer, lambda values: (_pooled(layer, batch.with_values(values)), None), batch.values)
    return SequenceBatch(values, batch.structure.tensor.clamp(max=1))


register_features(AttentionPool, lambda layer: (layer.features,))
