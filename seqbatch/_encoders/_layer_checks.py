"""What encoders check of a layer: whether it is stock, and which features, dtype and device it takes."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._checks.grammar import complaint, describe
from seqbatch._encode.registry import register_empty
from seqbatch._torch import (
    autocasts,
    has_hooks_before,
    hooks_after,
    in_a_graph,
    is_lazy,
    is_linear_float16,
    is_parametrized,
    is_recurrent_float16,
    parameters_of,
)
from seqbatch.errors import SeqbatchError, SeqbatchValueError


def keeps_forward(layer: nn.Module, layer_type: type[nn.Module]) -> bool:
    """Return True if a layer has the `forward` of the class that an encoder is registered for."""
    return type(layer).forward is layer_type.forward and "forward" not in vars(layer)


def takes_its_weights_dtype(layer: nn.Module) -> bool:
    """Return True if nothing between the input and the stored weights may change the dtype.

    A library that shards or quantizes a layer registers a hook before it, and a parametrization computes new weights.
    """
    return not has_hooks_before(layer) and not is_parametrized(layer)


def is_lack_of_memory(error: Exception) -> bool:
    """Return True if an allocator raised the error; on the CPU it does not have a class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def refusals_of(layer: nn.Module, batch: SequenceBatch) -> Iterator[None]:
    """Name the layer and its input in errors of PyTorch; errors of hooks or lack of memory pass through."""
    try:
        yield
    except SeqbatchError:
        raise
    except (ArithmeticError, IndexError, RuntimeError, ValueError) as error:
        if has_hooks_before(layer) or hooks_after(layer) or is_lack_of_memory(error):
            raise
        must = f"take features {tuple(batch.feature_shape)} and {batch.dtype}"
        remedy = f"PyTorch says: {str(error).partition(chr(10))[0]}"
        raise complaint(SeqbatchValueError, "layer", must, describe(layer), remedy) from error


def require_features(
    batch: SequenceBatch,
    expected: tuple[int, ...],
    layer: nn.Module,
    *,
    exactly: bool = False,
    subject: str = "sequences",
) -> None:
    """Raise unless the features of the batch end with the expected ones, or are exactly these.

    A lazy layer takes any number of features, because its size is not set yet.
    """
    found, shown = tuple(batch.feature_shape), str(expected)
    if is_lazy(layer):
        expected, shown = found[-1:] or (0,), "(any,)"
    if found[max(len(found) - len(expected), 0) :] != expected or (exactly and found != expected):
        remedy = _remedy_for_features(batch, expected)
        must = f"have features {'' if exactly else 'that end with '}{shown}, for {describe(layer)}"
        raise complaint(SeqbatchValueError, subject, must, found, remedy)


def _remedy_for_features(batch: SequenceBatch, expected: tuple[int, ...]) -> str:
    """Return what to do with a batch of wrong features, empty if they do not show what it is."""
    found = tuple(batch.feature_shape)
    if len(found) > len(expected):
        return "For a padded Tensor call SequenceBatch.from_padded."
    if not found and not (batch.dtype.is_floating_point or batch.dtype.is_complex):
        return "Convert token ids to features by an nn.Embedding first."
    if not found and expected == (1,):
        return "Pass x.unsqueeze(-1) for one feature."
    if len(found) == 1 and not in_a_graph() and {*batch.lengths} == {*expected}:
        return "Pass x.T for a sequence of shape (features, steps)."
    return ""


def first_weight(layer: nn.Module) -> Tensor | None:
    """Return the first parameter of a layer, or None if it has none.

    It does not read `layer.weight`, because a parametrization would compute that again, with side effects.
    """
    held: dict[str, Tensor | None] = parameters_of(layer)
    for weight in held.values():
        if weight is not None:
            return weight
    # Not by `layer.parameters()`, which takes several times as long.
    weights = (first_weight(child) for child in layer.children())
    return next((weight for weight in weights if weight is not None), None)


def require_dtype(batch: SequenceBatch, layer: nn.Module, *, subject: str = "sequences") -> None:
    """Raise unless the batch has the dtype of the layer's weights, or one that autocast converts."""
    weight = first_weight(layer)
    if weight is None or batch.dtype is weight.dtype or not takes_its_weights_dtype(layer):
        return
    if autocasts(batch.device) and batch.dtype in (torch.float32, torch.get_autocast_dtype(batch.device.type)):
        return
    must = f"have dtype {weight.dtype}, as the weights of {describe(layer)}"
    raise complaint(SeqbatchValueError, subject, must, batch.dtype, remedy_for_dtype(batch, weight.dtype))


def remedy_for_dtype(batch: SequenceBatch, dtype: torch.dtype) -> str:
    """Return how to convert sequences, empty if that drops the imaginary part."""
    return "" if batch.dtype.is_complex and not dtype.is_complex else f"Convert each by x.to({dtype})."


def require_device(batch: SequenceBatch, layer: nn.Module, *, subject: str = "sequences") -> None:
    """Raise unless the batch is on the device of the layer's weights; a hook before the layer may move either."""
    weight = first_weight(layer)
    if weight is not None and batch.device != weight.device and not has_hooks_before(layer):
        must = f"be on {weight.device}, as the weights of {describe(layer)}"
        raise complaint(SeqbatchValueError, subject, must, batch.device)


def require_weights_kind(queries: SequenceBatch, memory: SequenceBatch, layer: nn.Module) -> None:
    """Raise unless both batches have the dtype and device of the layer's weights."""
    require_dtype(queries, layer)
    require_device(queries, layer)
    if memory.dtype is not queries.dtype or memory.device != queries.device:
        require_dtype(memory, layer, subject="memory")
        require_device(memory, layer, subject="memory")


def quantized_layers(*names: str) -> list[type[nn.Module]]:
    """Return PyTorch's dynamically quantized layers of these names; none once it has removed them, as announced."""
    try:
        module = importlib.import_module("torch.ao.nn.quantized.dynamic")
    except ImportError:
        return []
    return [getattr(module, name) for name in names]


_LINEAR = tuple(quantized_layers("Linear"))
_RECURRENT = tuple(quantized_layers("LSTM", "GRU"))
# They are called on each step of a sequence alone, even if their weights are float16, because finding that out would
# unpack the weights, which takes as long as many steps.
QUANTIZED_CELLS = tuple(quantized_layers("LSTMCell", "GRUCell", "RNNCell"))
QUANTIZED = (*_LINEAR, *_RECURRENT, *QUANTIZED_CELLS)


def rounds_by_range(layer: Any) -> bool:
    """Return True if a layer is quantized and rounds its input by the range of the whole input.

    It must then be called on each sequence alone. With weights of float16 the input is not rounded.
    """
    if isinstance(layer, _RECURRENT):
        return not is_recurrent_float16(layer)
    return isinstance(layer, _LINEAR) and not is_linear_float16(layer)


def register_features(
    layer_type: type[nn.Module],
    features: Callable[[Any], tuple[int, ...] | None],
    dtype: torch.dtype | None = None,
    *,
    of_memory: bool = False,
) -> None:
    """Register the features that a layer takes, so that a batch made of an empty list gets outputs of the right size.

    Args:
        layer_type: the type of layer.
        features: from the layer to the features of a step; None if they are unknown.
        dtype: the dtype that it takes, if that is not the dtype of its weights.
        of_memory: True for the features of the memory that it attends to.
    """

    def make(layer: nn.Module, batch: SequenceBatch) -> SequenceBatch | None:
        sizes = features(layer) if keeps_forward(layer, layer_type) and not is_lazy(layer) else None
        if sizes is None:
            return None
        held = (*layer.parameters(), *layer.buffers())
        like = next((tensor for tensor in held if tensor.is_floating_point() or tensor.is_complex()), batch.values)
        return batch.with_values(torch.empty(0, *sizes, dtype=dtype or like.dtype, device=like.device))

    register_empty(layer_type, make, of_memory=of_memory)


def run_on_nothing(layer: nn.Module, result: Tensor, *batches: SequenceBatch) -> Tensor:
    """Connect the result for batches without steps to the layer's weights and to the batches in the autograd graph.

    Their gradients are then zeros and not missing, because distributed training needs a gradient of every weight.
    """
    values = [batch.values for batch in batches]
    sources = [source for source in (*values, *layer.parameters()) if source.requires_grad]
    # Sums of no elements, because 0 times NaN or infinity is NaN.
    return result + sum(source.flatten()[:0].sum() for source in sources) if sources else result
