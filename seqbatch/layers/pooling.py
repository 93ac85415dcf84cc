"""Pools: layers that reduce each sequence to one step; an empty sequence stays empty."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._encode.registry import register_encoder
from seqbatch._encoders._layer_checks import register_features, require_device, require_dtype, require_features
from seqbatch._encoders.containers import call_as_itself
from seqbatch._torch import in_a_graph
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
        return self._pool(as_batch(sequence))

    def _check(self, batch: SequenceBatch) -> None:
        """Raise unless the pool takes this batch."""

    @abstractmethod
    def _reduce(self, batch: SequenceBatch) -> Tensor:
        """Compute `(batch, *features)`; the rows of empty sequences are unused."""

    def _pool(self, batch: SequenceBatch) -> Tensor:
        """Compute the one step of each sequence that is not empty, end to end."""
        reduced = self._reduce(batch)
        if in_a_graph():
            return reduced[(batch.structure.tensor > 0).to(batch.device)]
        if batch.structure.without_empty is batch.structure:
            return reduced
        return reduced.index_select(0, batch.structure.on(batch.device).not_empty)


@register_encoder(_Pool)  # type: ignore[type-abstract]  # for its subclasses
def _(layer: _Pool, batch: SequenceBatch) -> SequenceBatch:
    refuse_own_forward(layer, _Pool)
    layer._check(batch)
    values = call_as_itself(layer, lambda values: layer._pool(batch.with_values(values)), batch.values)
    return SequenceBatch(values, batch.structure.tensor.clamp(max=1))


class SumPool(_Pool):
    """Sums the steps of each sequence, as `SequenceBatch.sum`.

    A sequence becomes one of one step, `(1, *features)`; an empty one stays empty. Integers and bools become int64.

    >>> encode(SumPool(), [torch.tensor([1, 2]), torch.tensor([3])])
    [tensor([3]), tensor([3])]
    """

    def _reduce(self, batch: SequenceBatch) -> Tensor:
        return batch.sum()


class MeanPool(_Pool):
    """Averages the steps of each sequence, as `SequenceBatch.mean`; the dtype must be floating or complex.

    A sequence becomes one of one step, `(1, *features)`; an empty one stays empty.

    >>> encode(MeanPool(), [torch.tensor([1.0, 2.0]), torch.tensor([3.0])])
    [tensor([1.5000]), tensor([3.])]
    """

    def _reduce(self, batch: SequenceBatch) -> Tensor:
        return batch.mean()


class MaxPool(_Pool):
    """Takes the largest step of each sequence, feature by feature, as `SequenceBatch.max`; complex has no largest.

    A sequence becomes one of one step, `(1, *features)`; an empty one stays empty. Steps that are equally
    large share the gradient.

    >>> encode(MaxPool(), [torch.tensor([1, 2]), torch.tensor([3])])
    [tensor([2]), tensor([3])]
    """

    def _reduce(self, batch: SequenceBatch) -> Tensor:
        return batch.max()


class MinPool(_Pool):
    """Takes the smallest step of each sequence, feature by feature, as `SequenceBatch.min`; complex has no smallest.

    A sequence becomes one of one step, `(1, *features)`; an empty one stays empty. Steps that are equally
    small share the gradient.

    >>> encode(MinPool(), [torch.tensor([1, 2]), torch.tensor([3])])
    [tensor([1]), tensor([3])]
    """

    def _reduce(self, batch: SequenceBatch) -> Tensor:
        return batch.min()


class FirstStep(_Pool):
    """Takes the first step of each sequence, as `SequenceBatch.first`.

    A sequence becomes one of one step, `(1, *features)`; an empty one stays empty.

    >>> encode(FirstStep(), [torch.tensor([1, 2]), torch.tensor([3])])
    [tensor([1]), tensor([3])]
    """

    def _reduce(self, batch: SequenceBatch) -> Tensor:
        return batch.first()


class LastStep(_Pool):
    """Takes the last real step of each sequence, as `SequenceBatch.last`.

    A sequence becomes one of one step, `(1, *features)`; an empty one stays empty. In the outputs of a bidirectional
    layer, the backward half has seen only one step there.

    >>> encode(LastStep(), [torch.tensor([1, 2]), torch.tensor([3])])
    [tensor([2]), tensor([3])]
    """

    def _reduce(self, batch: SequenceBatch) -> Tensor:
        return batch.last()


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
        return f"{self.features}"

    def _check(self, batch: SequenceBatch) -> None:
        require_features(batch, (self.features,), self, exactly=True)
        require_dtype(batch, self)
        require_device(batch, self)

    def _reduce(self, batch: SequenceBatch) -> Tensor:
        shares = batch.map(lambda values: values @ self.query).softmax()
        return batch.map(lambda values, shares: values * shares[:, None], shares).sum()


register_features(AttentionPool, lambda layer: (layer.features,))
