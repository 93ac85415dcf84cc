"""Encoders of nn.MultiheadAttention, nn.TransformerEncoderLayer and nn.TransformerEncoder: self-attention.

A sequence is query, key and value; the output does not include the attention weights. No step attends to one of another
sequence. For a causal mask use `seqbatch.layers.Causal`.

A layer with hooks, with parametrized weights or with its own `forward`, or one that holds such a layer, is called as
itself: once for each length, on all sequences of that length, without padding or mask. So its hooks run once for each
length too. Any other layer runs on the flat values. Its attention is computed by a kernel, or on buckets of similar
lengths.

Second-order gradients need `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`, as in PyTorch's own layers. For forward
mode and `vmap` it is chosen here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._checks.grammar import complaint, describe
from seqbatch._checks.tracing import outside_graphs
from seqbatch._encode.registry import register_encoder, unsupported
from seqbatch._encoders._buckets import run_in_groups, run_one_by_one
from seqbatch._encoders._layer_checks import (
    QUANTIZED_CELLS,
    keeps_forward,
    register_features,
    require_device,
    require_dtype,
    require_features,
    rounds_by_range,
    run_on_nothing,
    takes_its_weights_dtype,
)
from seqbatch._encoders._self_attention import attend
from seqbatch._encoders._stock_layers import is_stock_attention
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch.errors import SeqbatchValueError

# The number of steps per call of the feed-forward part, when no gradients are recorded. On the CPU this takes up to a
# fifth less time than one call, because the hidden values stay in the cache; 512 and 4,096 are slower.
AT_ONCE = 1024

ATTENTION_TYPES: tuple[type[nn.Module], ...] = (
    nn.MultiheadAttention,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
)


def _register_attention(layer_type: type[nn.Module]) -> None:
    @register_encoder(layer_type)
    @outside_graphs
    def _(layer: nn.Module, batch: SequenceBatch) -> SequenceBatch:
        def call(group: Tensor) -> Any:
            return layer(group, group, group) if isinstance(layer, nn.MultiheadAttention) else layer(group)

        is_stock = is_stock_attention(layer)
        require_attention_input(layer, batch, is_stock)
        return run_attention(layer, batch, call, is_stock=is_stock, causal=False)


def features_of(layer: nn.Module) -> tuple[int, ...] | None:
    """Return the features that a layer of one of the `ATTENTION_TYPES` takes; None if it holds no attention."""
    attentions = (module for module in layer.modules() if isinstance(module, nn.MultiheadAttention))
    return next(((attention.embed_dim,) for attention in attentions), None)


for _kind in ATTENTION_TYPES:
    _register_attention(_kind)
    register_features(_kind, features_of)


def require_attention_input(layer: nn.Module, batch: SequenceBatch, is_stock: bool) -> None:
    """Raise unless an attention layer takes a batch; one with its own `forward` may take anything."""
    layer_type = next(layer_type for layer_type in ATTENTION_TYPES if isinstance(layer, layer_type))
    attentions = [module for module in layer.modules() if isinstance(module, nn.MultiheadAttention)]
    if not keeps_forward(layer, layer_type) or not attentions:
        return
    require_self_attention(attentions)
    require_features(batch, (attentions[0].embed_dim,), layer, exactly=True)
    if is_stock or all(takes_its_weights_dtype(module) for module in layer.modules()):
        require_dtype(batch, layer)
        require_device(batch, layer)


def require_self_attention(attentions: list[nn.MultiheadAttention]) -> None:
    """Raise unless the keys and values of each attention have the size of its queries."""
    for attention in attentions:
        sizes = attention.embed_dim, attention.kdim, attention.vdim
        if len({*sizes}) > 1:
            must = f"have kdim and vdim {sizes[0]}, as its embed_dim, because each sequence attends to itself"
            raise complaint(SeqbatchValueError, "layer", must, f"kdim {sizes[1]} and vdim {sizes[2]}")


def run_attention(
    layer: nn.Module, batch: SequenceBatch, call: Callable[[Tensor], Any], *, is_stock: bool, causal: bool
) -> SequenceBatch:
    """Run a layer of one of the `ATTENTION_TYPES`, so that each sequence attends to itself.

    Args:
        layer: the layer.
        batch: the batch.
        call: calls the layer itself on a Tensor of three dimensions, in the order of the layer's `batch_first`.
        is_stock: True if the layer is stock; then all but the attention runs on the flat values.
        causal: True if steps do not attend to later ones; `call` must do the same.
    """
    if not batch.total_steps:
        # The same operations on no rows, because `torch.autocast` may change the dtype.
        nothing = (
            _run_on_flat_values(layer, batch.values, batch.structure.without_empty, causal)
            if is_stock
            else batch.values
        )
        return batch.with_values(run_on_nothing(layer, nothing, batch))
    if not is_stock:
        has_range = must_run_alone(layer)
        return (run_one_by_one if has_range else run_in_groups)(batch_first_call(layer, call), batch)
    return batch.with_values(_run_on_flat_values(layer, batch.values, batch.structure.without_empty, causal))


def _run_on_flat_values(layer: Any, values: Tensor, lengths: Lengths, causal: bool) -> Tensor:
    """Compute what the layer's `forward` does, on flat values."""
    if isinstance(layer, nn.MultiheadAttention):
        return attend(layer, values, lengths, causal)
    if isinstance(layer, nn.TransformerEncoder):
        for part in layer.layers:
            values = _run_on_flat_values(part, values, lengths, causal)
        return values if layer.norm is None else layer.norm(values)
    if layer.norm_first:
        values = values + layer.dropout1(attend(layer.self_attn, layer.norm1(values), lengths, causal))
        return values + feed_forward(layer, layer.norm2(values), layer.dropout2)
    values = layer.norm1(values + layer.dropout1(attend(layer.self_attn, values, lengths, causal)))
    result: Tensor = layer.norm2(values + feed_forward(layer, values, layer.dropout2))
    return result


def feed_forward(layer: Any, values: Tensor, dropout: nn.Module) -> Tensor:
    """Run the feed-forward part of a layer on flat values; the dropout after it has a name of its own in a decoder."""
    if torch.is_grad_enabled() or not values.is_cpu:
        return _feed_rows_forward(layer, values, dropout)
    return torch.cat([_feed_rows_forward(layer, part, dropout) for part in values.split(AT_ONCE)])


def _feed_rows_forward(layer: Any, values: Tensor, dropout: nn.Module) -> Tensor:
    hidden = layer.dropout(layer.activation(layer.linear1(values)))
    result: Tensor = dropout(layer.linear2(hidden))
    return result


def must_run_alone(layer: nn.Module) -> bool:
    """Return True if a layer in it rounds its input by the range of the whole input, so that sequences run alone."""
    return any(isinstance(part, QUANTIZED_CELLS) or rounds_by_range(part) for part in layer.modules())


def is_batch_first(layer: Any) -> bool:
    """Return True if a layer is batch-first, by the attribute that PyTorch itself reads."""
    inner = layer.layers[0] if isinstance(layer, (nn.TransformerDecoder, nn.TransformerEncoder)) else layer
    holder = inner if isinstance(inner, nn.MultiheadAttention) else getattr(inner, "self_attn", inner)
    if not isinstance(getattr(holder, "batch_first", None), bool):
        raise unsupported(layer, reason=f"{describe(holder)} in it does not say whether it is batch_first")
    return bool(holder.batch_first)


def batch_first_call(layer: nn.Module, call: Callable[..., Any]) -> Callable[..., Tensor]:
    """Wrap a call to be batch-first, and to drop the attention weights."""
    first = is_batch_first(layer)

    def call_batch_first(*groups: Tensor) -> Tensor:
        result = call(*(group if first else group.transpose(0, 1) for group in groups))
        output: Tensor = result[0] if isinstance(result, tuple) else result
        return output if first else output.transpose(0, 1)

    return call_batch_first
