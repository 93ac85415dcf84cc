"""Additive and dot-product attention: layers of one head, whose weights can be returned."""

# mypy: disable-error-code="overload-overlap"
# As in `_encode`: PackedSequence comes before tuple, because it is a subclass.

from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqbatch._batch import SequenceBatch
from seqbatch._checks.arguments import require_tensor
from seqbatch._checks.grammar import complaint
from seqbatch._checks.per_sample_gradients import require_no_samples
from seqbatch._checks.tracing import outside_graphs
from seqbatch._encode import SameBatch, SeveralSequences, T
from seqbatch._encode.inputs import open_pair
from seqbatch._encode.registry import empty_pair, register_cross_attention
from seqbatch._encoders._buckets import pair_bucket_overhead, pair_buckets_of
from seqbatch._encoders._hooked_call import call_as_itself
from seqbatch._encoders._layer_checks import (
    keeps_forward,
    register_features,
    require_features,
    require_weights_kind,
    run_on_nothing,
)
from seqbatch._encoders._self_attention import supported_kernels
from seqbatch._encoders._stock_layers import is_untouched
from seqbatch._encoders.attention import must_run_alone
from seqbatch._kernels.flat_attention import attend_with_gradients, can_compute
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch.errors import SeqbatchValueError
from seqbatch.layers._argument_checks import refuse_own_forward, size

# The hidden numbers of additive attention that are computed at once: more would not stay in the cache.
_HIDDEN_AT_ONCE = 2**18
# What a hidden number of additive attention costs, in numbers of dot products: a tanh, and several passes over memory.
_COST_OF_HIDDEN = 8


class _AttentionToMemory(nn.Module):
    """The base class of layers whose queries attend to memory, which is both keys and values."""

    query_projection: nn.Linear

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__()
        self.query_size: int = size("query_size", query_size)
        self.memory_size: int = size("memory_size", memory_size)

    def extra_repr(self) -> str:
        """Return the arguments, which `repr` of the layer shows."""
        return ", ".join(str(size) for size in _layer_sizes(self))

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """Run on one sequence and its memory.

        Args:
            query: `(steps, query_size)`.
            memory: `(memory steps, memory_size)`.

        Returns:
            `(steps, memory_size)`: for each step the mean of memory by its weights, zeros if memory is empty; gradients
            flow.

        Raises:
            SeqbatchTypeError: either is not a Tensor.
            SeqbatchValueError: either has another shape.
        """
        for subject, value, features in (("query", query, self.query_size), ("memory", memory, self.memory_size)):
            shape = tuple(require_tensor(subject, value).shape)
            if len(shape) != 2 or shape[1] != features:
                remedy = "For several sequences call encode(layer, queries, memory)."
                raise complaint(SeqbatchValueError, subject, f"have shape (steps, {features})", shape, remedy)
        queries, keys = _project(self, query, memory)
        return _weigh(self, queries[None], keys[None], memory[None], None, False)[0][0]

    @overload
    def attend(self, queries: Tensor, memory: Tensor) -> tuple[Tensor, SequenceBatch]: ...
    @overload
    def attend(self, queries: SameBatch, memory: SeveralSequences) -> tuple[SameBatch, SequenceBatch]: ...
    @overload
    def attend(
        self, queries: list[T] | tuple[T, ...], memory: SeveralSequences
    ) -> tuple[list[Tensor], SequenceBatch]: ...
    def attend(self, queries: Any, memory: Any) -> tuple[Any, SequenceBatch]:
        """Run on sequences of unequal length as `encode(layer, queries, memory)`, and return the weights too.

        Args:
            queries: as the `sequences` of `encode`, of features `(query_size,)`.
            memory: as the `memory` of `encode`, of features `(memory_size,)`.

        Returns:
            what `encode` returns, and a batch of one sequence for each query step: the weights of the steps of its
            memory, which add up to 1, `(memory steps,)`. With one query step for each sequence, these have the lengths
            of memory. Gradients flow through both.

        Raises:
            SeqbatchTypeError: as `encode`.
            SeqbatchValueError: as `encode`.
            UnsupportedLayerError: the layer has its own `forward`.
            SeqbatchError: `torch.export` or `torch.onnx.export` runs the call.

        >>> from seqbatch.layers import DotProductAttention
        >>> layer = DotProductAttention(3, 5)
        >>> states, memory = [torch.randn(1, 3), torch.randn(1, 3)], [torch.randn(4, 5), torch.randn(2, 5)]
        >>> contexts, weights = layer.attend(states, memory)
        >>> weights.lengths, weights.sum().shape
        ((4, 2), torch.Size([2]))
        """
        require_no_samples("layer", self)
        refuse_own_forward(self, _AttentionToMemory)
        source, opened, close = open_pair(queries, memory, self)
        pair = empty_pair(self, opened, source)
        assert pair is not None, "the features of these layers are known"
        context, weights = _attend_outside_graphs(self, *pair, True)
        return close(context), weights


class AdditiveAttention(_AttentionToMemory):
    """Attends to memory by the scores of a network of one hidden layer.

    The score of a query step and a step of memory is `score(tanh(query_projection(query) + memory_projection(step)))`.
    The softmax of the scores over the steps of memory are its weights, and the result is the mean of memory by these:
    zeros if memory is empty. `encode(layer, queries, memory)` returns it, and `layer.attend(queries, memory)` the
    weights too. Hooks of `score` run once for each group of sequences. Each call computes `memory_projection` of all of
    memory, also that of a decoder at each step, where `DotProductAttention` is faster.

    The compiled kernels keep nothing for a pair of steps. `attend`, gradients of gradients, and what runs without the
    kernels keep `hidden_size` numbers for each pair where gradients are recorded.

    Args:
        query_size: the size of a query step.
        memory_size: the size of a step of memory, and of the result.
        hidden_size: the size of the hidden layer.
        device: the device of the weights, as for layers of PyTorch.
        dtype: the dtype of the weights, as for layers of PyTorch.

    Raises:
        SeqbatchTypeError: a size is not an integer.
        SeqbatchValueError: a size is negative.

    Source: Bahdanau et al., 2015, Neural Machine Translation by Jointly Learning to Align and Translate.

    >>> from seqbatch.layers import AdditiveAttention
    >>> layer = AdditiveAttention(3, 5, 8)
    >>> xs, ys = encode(layer, [torch.randn(7, 3), torch.randn(2, 3)], [torch.randn(4, 5), torch.randn(9, 5)])
    >>> xs.shape, ys.shape
    (torch.Size([7, 5]), torch.Size([2, 5]))
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        hidden_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(query_size, memory_size)
        self.hidden_size: int = size("hidden_size", hidden_size)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query_projection: nn.Linear = nn.Linear(self.query_size, self.hidden_size, bias=False, **options)
        self.memory_projection: nn.Linear = nn.Linear(self.memory_size, self.hidden_size, **options)
        # Without a bias, because a softmax does not change when a number is added to all scores.
        self.score: nn.Linear = nn.Linear(self.hidden_size, 1, bias=False, **options)


class DotProductAttention(_AttentionToMemory):
    """Attends to memory by scaled dot products.

    The score of a query step and a step of memory is the dot product of `query_projection(query)` and the step, divided
    by the square root of `memory_size`. The softmax of the scores over the steps of memory are its weights, and the
    result is the mean of memory by these: zeros if memory is empty. `encode(layer, queries, memory)` returns it, and
    `layer.attend(queries, memory)` the weights too. Nothing is computed from memory alone, so that a decoder may call
    it at each step.

    The compiled kernels keep nothing for a pair of steps. `attend` and gradients of gradients keep one number.
    Where the kernels do not run, as in `torch.func`, gradients of gradients need
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`, as in PyTorch's own attention. `attend` never needs it.

    Args:
        query_size: the size of a query step.
        memory_size: the size of a step of memory, and of the result.
        device: the device of the weights, as for layers of PyTorch.
        dtype: the dtype of the weights, as for layers of PyTorch.

    Raises:
        SeqbatchTypeError: a size is not an integer.
        SeqbatchValueError: a size is negative.

    Source: Luong et al., 2015, Effective Approaches to Attention-based Neural Machine Translation, the score "general",
    with the scale of Vaswani et al., 2017, Attention Is All You Need.

    >>> from seqbatch.layers import DotProductAttention
    >>> layer = DotProductAttention(3, 5)
    >>> xs, ys = encode(layer, [torch.randn(7, 3), torch.randn(2, 3)], [torch.randn(4, 5), torch.randn(9, 5)])
    >>> xs.shape, ys.shape
    (torch.Size([7, 5]), torch.Size([2, 5]))
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(query_size, memory_size)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query_projection: nn.Linear = nn.Linear(self.query_size, self.memory_size, bias=False, **options)


def _numbers_per_pair(layer: _AttentionToMemory) -> int:
    """Return the cost of a query step with a step of memory, in numbers of dot products."""
    return layer.hidden_size * _COST_OF_HIDDEN if isinstance(layer, AdditiveAttention) else layer.memory_size


def _layer_sizes(layer: _AttentionToMemory) -> tuple[int, ...]:
    """Return the sizes of a layer; the last one is that of what is computed for each pair of steps."""
    hidden = (layer.hidden_size,) if isinstance(layer, AdditiveAttention) else ()
    return (layer.query_size, layer.memory_size, *hidden)


def _project(layer: _AttentionToMemory, queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Compute queries and keys from steps of any leading dimensions."""
    keys = layer.memory_projection(memory) if isinstance(layer, AdditiveAttention) else memory
    return layer.query_projection(queries), keys


def _weigh(
    layer: _AttentionToMemory,
    queries: Tensor,
    keys: Tensor,
    memory: Tensor,
    mask: Tensor | None,
    with_weights: bool,
    score_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute contexts and weights of sequences side by side; the weights are not used unless asked for.

    Args:
        layer: the layer.
        queries: `(number, steps, size)`, projected.
        keys: `(number, memory steps, size)`, projected.
        memory: `(number, memory steps, memory_size)`.
        mask: `(number, 1, 1, memory steps)`, True where memory is not padding; None without padding.
        with_weights: whether the weights are needed.
        score_weight: `(1, hidden_size)`, what replaces `layer.score` where it is not None.

    Returns:
        `(number, steps, memory_size)` and `(number, steps, memory steps)`.
    """
    if isinstance(layer, AdditiveAttention):
        together = max(_HIDDEN_AT_ONCE // max(queries[:1].numel() * keys.shape[1], 1), 1)
        groups = zip(queries.split(together), keys.split(together), strict=True)
        sums = (some[:, :, None] + others[:, None] for some, others in groups)
        score = layer.score if score_weight is None else partial(functional.linear, weight=score_weight)
        scores = torch.cat([score(torch.tanh(each)).squeeze(-1) for each in sums])
    else:
        scale = _scale(layer)
        if not with_weights:
            with supported_kernels():
                context = functional.scaled_dot_product_attention(
                    queries[:, None], keys[:, None], memory[:, None], mask, scale=scale
                )
            return context[:, 0], context
        scores = (queries * scale) @ keys.mT
    if mask is not None:  # by addition, because masked_fill would copy the scores, and takes longer
        hidden = ~mask[:, 0]
        scores = scores + scores.new_zeros(hidden.shape).masked_fill(hidden, float("-inf"))
    weights = scores.softmax(-1)
    return weights @ memory, weights


def _scale(layer: _AttentionToMemory) -> float:
    """Return the factor of dot products."""
    return float(max(layer.memory_size, 1) ** -0.5)


def _run_by_kernels(
    layer: _AttentionToMemory, projected: Tensor, keys: Tensor, queries: SequenceBatch, memory: SequenceBatch
) -> Tensor | None:
    """Compute the contexts by the kernels; None if they cannot. A hook may have replaced a projection by any Tensor."""
    size = _layer_sizes(layer)[-1]
    if projected.shape != (queries.total_steps, size) or keys.shape != (memory.total_steps, size):
        return None
    parts, weight = (projected, keys, memory.values), None
    if isinstance(layer, AdditiveAttention):
        score = layer.score
        if not isinstance(score, nn.Linear) or not keeps_forward(score, nn.Linear) or not is_untouched(score):
            return None
        weight = score.weight
        if score.bias is not None or weight.shape != (1, size):
            return None
    if not can_compute(*parts, *(() if weight is None else (weight,))):
        return None
    structures = queries.structure, memory.structure

    def by_pytorch(projected: Tensor, keys: Tensor, values: Tensor, weight: Tensor | None = None) -> Tensor:
        # With weights, because PyTorch's own attention has no gradients of gradients.
        return _run_by_buckets(layer, projected, keys, values, *structures, True, weight)[0]

    starts = queries.structure.offsets, memory.structure.offsets
    scale = 1.0 if weight is not None else _scale(layer)
    return attend_with_gradients(*parts, weight, *starts, by_pytorch, scale=scale)


def _contexts(
    layer: _AttentionToMemory, queries: SequenceBatch, memory: SequenceBatch, with_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute the contexts `(total query steps, memory_size)`, and the weights of all query steps end to end."""
    projected, keys = _project(layer, queries.values, memory.values)
    context = None if with_weights else _run_by_kernels(layer, projected, keys, queries, memory)
    if context is not None:
        return context, None
    structures = queries.structure, memory.structure
    return _run_by_buckets(layer, projected, keys, memory.values, *structures, with_weights)


def _run_by_buckets(
    layer: _AttentionToMemory,
    projected: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Lengths,
    memory: Lengths,
    with_weights: bool,
    score_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute what `_contexts` does by functions of PyTorch, from projected queries and keys."""
    buckets = memory.plan(
        pair_buckets_of,
        queries.counts,
        pair_bucket_overhead(_numbers_per_pair(layer), values.device),
        1,
        0,
        with_weights,
        device=values.device,
    )
    query_rows, rows = buckets.queries.fill(projected, queries), buckets.memory.fill(values, memory)
    key_rows = rows if keys is values else buckets.memory.fill(keys, memory)
    contexts, weights = [], []
    for query, key, value, shape, memory_shape, mask in zip(
        buckets.queries.split(query_rows),
        buckets.memory.split(key_rows),
        buckets.memory.split(rows),
        buckets.queries.shapes,
        buckets.memory.shapes,
        buckets.memory.masks,
        strict=True,
    ):
        parts = query.unflatten(0, shape), key.unflatten(0, memory_shape), value.unflatten(0, memory_shape)
        context, weight = _weigh(layer, *parts, mask, with_weights, score_weight)
        contexts.append(context.flatten(0, 1))
        weights.append(weight)
    # If no query has memory, all rows are zeros, and their size is that of memory.
    nothing = query_rows.new_zeros(0, layer.memory_size)
    return buckets.queries.join(contexts or [nothing], queries), buckets.join_weights(weights, nothing)


def _contexts_pair_by_pair(
    layer: _AttentionToMemory, queries: SequenceBatch, memory: SequenceBatch, with_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute what `_contexts` does, for a layer whose quantized parts round by the range of the whole input."""
    pairs = (slice(i, i + 1) for i in range(queries.batch_size))
    found = [_contexts(layer, queries[pair], memory[pair], with_weights) for pair in pairs]
    weights = [weight for _, weight in found if weight is not None]
    return torch.cat([context for context, _ in found]), torch.cat(weights) if with_weights else None


def _attend(
    layer: _AttentionToMemory, queries: SequenceBatch, memory: SequenceBatch, with_weights: bool
) -> tuple[SequenceBatch, SequenceBatch | None]:
    """Check and run a layer, with its hooks; the weights are None if not asked for."""
    refuse_own_forward(layer, _AttentionToMemory)
    require_features(queries, (layer.query_size,), layer, exactly=True)
    require_features(memory, (layer.memory_size,), layer, exactly=True, subject="memory")
    require_weights_kind(queries, memory, layer)

    compute = _contexts_pair_by_pair if queries.batch_size and must_run_alone(layer) else _contexts

    def forward(values: Tensor, memory_values: Tensor) -> tuple[Tensor, Tensor | None]:
        return compute(layer, queries.with_values(values), memory.with_values(memory_values), with_weights)

    values, weights = call_as_itself(layer, forward, queries.values, memory.values)
    if not any(map(min, queries.lengths, memory.lengths)):  # because no step has attended to memory
        values = run_on_nothing(layer, values, queries, memory)
    context = queries.with_values(values)
    if weights is None:
        return context, None
    if {*queries.lengths} == {1}:
        return context, memory.with_values(weights)
    counts = torch.repeat_interleave(memory.structure.tensor, queries.structure.tensor)
    return context, SequenceBatch(weights, counts)


_attend_outside_graphs: Any = outside_graphs(_attend)


@register_cross_attention(_AttentionToMemory)  # for its subclasses
def _(layer: _AttentionToMemory, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
    context: SequenceBatch = _attend_outside_graphs(layer, queries, memory, False)[0]
    return context


register_features(_AttentionToMemory, lambda layer: (layer.query_size,))
register_features(_AttentionToMemory, lambda layer: (layer.memory_size,), of_memory=True)
