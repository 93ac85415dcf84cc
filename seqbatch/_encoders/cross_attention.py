"""Encoders of attention over another batch: nn.MultiheadAttention, nn.TransformerDecoderLayer, nn.TransformerDecoder.

The sequences are the queries. Memory is key and value: a sequence attends to the one of the same index in it. The
output does not include the attention weights. For a causal mask of the queries use `seqbatch.layers.Causal`.

An empty sequence of memory has no key: a query attends to zeros, as PyTorch's layer does for it alone. The result is
the bias of the output projection, which PyTorch initializes to zeros, and in a decoder what follows from it.

A layer with hooks, with parametrized weights or with its own `forward`, or one that holds such a layer, is called as
itself: once for each pair of lengths, on all sequences of these lengths, without padding or mask, and once for each
sequence without memory. Any other layer runs on the flat values. Its attention is computed by a kernel, or on buckets
of pairs of similar lengths.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._checks.grammar import complaint
from seqbatch._checks.tracing import outside_graphs
from seqbatch._encode.registry import register_cross_attention
from seqbatch._encoders._buckets import run_pairs_in_groups, run_pairs_one_by_one
from seqbatch._encoders._layer_checks import (
    keeps_forward,
    register_features,
    require_features,
    require_weights_kind,
    run_on_nothing,
    takes_its_weights_dtype,
)
from seqbatch._encoders._memory_attention import attend_to_memory
from seqbatch._encoders._self_attention import attend
from seqbatch._encoders._stock_layers import is_stock_attention
from seqbatch._encoders.attention import (
    batch_first_call,
    features_of,
    feed_forward,
    must_run_alone,
    require_self_attention,
)
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch.errors import SeqbatchValueError

DECODER_TYPES: tuple[type[nn.Module], ...] = (nn.TransformerDecoder, nn.TransformerDecoderLayer)
_CROSS_ATTENTION_TYPES: tuple[type[nn.Module], ...] = (nn.MultiheadAttention, *DECODER_TYPES)


def _register_memory_attention(layer_type: type[nn.Module]) -> None:
    @register_cross_attention(layer_type)
    @outside_graphs
    def _(layer: nn.Module, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
        def call(group: Tensor, source: Tensor) -> Any:
            return layer(group, source, source) if isinstance(layer, nn.MultiheadAttention) else layer(group, source)

        is_stock = is_stock_attention(layer)
        require_cross_attention_input(layer, queries, memory, is_stock)
        return run_cross_attention(layer, queries, memory, call, is_stock=is_stock, causal=False)


def _attentions_to_memory(layer: nn.Module) -> list[nn.MultiheadAttention]:
    """Return the attentions whose keys and values are memory, in a layer of one of these types."""
    if isinstance(layer, nn.MultiheadAttention):
        return [layer]
    decoders = [part for part in layer.modules() if isinstance(part, nn.TransformerDecoderLayer)]
    return [part.multihead_attn for part in decoders if isinstance(part.multihead_attn, nn.MultiheadAttention)]


def memory_features_of(layer: nn.Module) -> tuple[int, ...] | None:
    """Return the features that a layer of one of these types takes as memory; None if it holds no such attention."""
    return next(((attention.kdim,) for attention in _attentions_to_memory(layer)), None)


for _kind in _CROSS_ATTENTION_TYPES:
    _register_memory_attention(_kind)
    register_features(_kind, memory_features_of, of_memory=True)
for _kind in DECODER_TYPES:
    register_features(_kind, features_of)


def require_cross_attention_input(
    layer: nn.Module, queries: SequenceBatch, memory: SequenceBatch, is_stock: bool
) -> None:
    """Raise unless a layer takes the queries and memory; one with its own `forward` may take anything."""
    layer_type = next(layer_type for layer_type in _CROSS_ATTENTION_TYPES if isinstance(layer, layer_type))
    attentions = _attentions_to_memory(layer)
    if not keeps_forward(layer, layer_type) or not attentions:
        return
    held = [module for module in layer.modules() if isinstance(module, nn.MultiheadAttention)]
    require_self_attention([module for module in held if not any(module is one for one in attentions)])
    for attention in attentions:
        if attention.kdim != attention.vdim:
            must = "have equal kdim and vdim, because memory is both key and value"
            raise complaint(SeqbatchValueError, "layer", must, f"kdim {attention.kdim} and vdim {attention.vdim}")
    require_features(queries, (attentions[0].embed_dim,), layer, exactly=True)
    for attention in attentions:
        require_features(memory, (attention.kdim,), layer, exactly=True, subject="memory")
    if is_stock or all(takes_its_weights_dtype(module) for module in layer.modules()):
        require_weights_kind(queries, memory, layer)


def run_cross_attention(
    layer: nn.Module,
    queries: SequenceBatch,
    memory: SequenceBatch,
    call: Callable[[Tensor, Tensor], Any],
    *,
    is_stock: bool,
    causal: bool,
) -> SequenceBatch:
    """Run a layer of one of these types, so that each sequence attends to its memory.

    Args:
        layer: the layer.
        queries: the queries.
        memory: a batch of the same batch size.
        call: calls the layer itself on queries and memory of three dimensions, in the order of its `batch_first`.
        is_stock: True if the layer is stock; then all but the attention runs on the flat values.
        causal: True if steps of queries do not attend to later ones of their own; `call` must do the same.
    """
    if not is_stock and queries.total_steps:
        run = run_pairs_one_by_one if must_run_alone(layer) else run_pairs_in_groups
        return run(batch_first_call(layer, call), queries, memory)
    values = queries.values
    if is_stock:
        values = _decode_flat_values(layer, values, queries.structure, memory, causal)
    if not any(map(min, queries.lengths, memory.lengths)):  # because no step has attended to memory
        values = run_on_nothing(layer, values, queries, memory)
    return queries.with_values(values)


def _decode_flat_values(layer: Any, values: Tensor, lengths: Lengths, memory: SequenceBatch, causal: bool) -> Tensor:
    """Compute what the layer's `forward` does, on flat values."""
    if isinstance(layer, nn.MultiheadAttention):
        return attend_to_memory(layer, values, lengths, memory)
    if isinstance(layer, nn.TransformerDecoder):
        for part in layer.layers:
            values = _decode_flat_values(part, values, lengths, memory, causal)
        return values if layer.norm is None else layer.norm(values)
    own = lengths.without_empty
    if layer.norm_first:
        values = values + layer.dropout1(attend(layer.self_attn, layer.norm1(values), own, causal))
        attended = attend_to_memory(layer.multihead_attn, layer.norm2(values), lengths, memory)
        values = values + layer.dropout2(attended)
        return values + feed_forward(layer, layer.norm3(values), layer.dropout3)
    values = layer.norm1(values + layer.dropout1(attend(layer.self_attn, values, own, causal)))
    attended = attend_to_memory(layer.multihead_attn, values, lengths, memory)
    values = layer.norm2(values + layer.dropout2(attended))
    result: Tensor = layer.norm3(values + feed_forward(layer, values, layer.dropout3))
    return result
