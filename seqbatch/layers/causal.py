"""Causal: runs attention layers with a causal mask."""

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._checks.arguments import require_steps
from seqbatch._checks.grammar import complaint, type_name
from seqbatch._checks.tracing import outside_graphs
from seqbatch._encode.registry import missing_memory, register_cross_attention, register_encoder, without_memory
from seqbatch._encoders._layer_checks import keeps_forward, register_features
from seqbatch._encoders._stock_layers import is_stock_attention, is_untouched
from seqbatch._encoders.attention import (
    ATTENTION_TYPES,
    features_of,
    is_batch_first,
    require_attention_input,
    run_attention,
)
from seqbatch._encoders.cross_attention import (
    DECODER_TYPES,
    memory_features_of,
    require_cross_attention_input,
    run_cross_attention,
)
from seqbatch.errors import SeqbatchTypeError


class Causal(nn.Module):
    """Runs an attention layer with a causal mask: each step attends to itself and to those before it.

    PyTorch's layers need such a mask, of the size of the sequence, at every call. Wrap a layer that predicts the next
    step once instead. Every step also attends to what `add_bias_kv` and `add_zero_attn` add, and in a decoder to all of
    memory.

    Args:
        layer: an `nn.MultiheadAttention`, used as self-attention, an `nn.TransformerEncoderLayer`,
            `nn.TransformerEncoder`, `nn.TransformerDecoderLayer` or `nn.TransformerDecoder`.

    Raises:
        SeqbatchTypeError: the layer is of another type.

    >>> from seqbatch.layers import Causal
    >>> layer = Causal(nn.TransformerEncoderLayer(8, 2, dropout=0.0))
    >>> xs, ys = torch.randn(10, 8), torch.randn(7, 8)
    >>> hs_x, hs_y = encode(layer, [xs, ys])
    >>> torch.testing.assert_close(encode(layer, xs[:4]), hs_x[:4])
    >>> decoder = Causal(nn.TransformerDecoderLayer(8, 2, dropout=0.0))
    >>> out_x, out_y = encode(decoder, [xs, ys], [hs_x, hs_y])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if not isinstance(layer, (*ATTENTION_TYPES, *DECODER_TYPES)):
            names = "nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder"
            must = f"be an {names}, nn.TransformerDecoderLayer or nn.TransformerDecoder"
            raise complaint(SeqbatchTypeError, "layer", must, type_name(layer))
        self.layer = layer

    def forward(self, sequence: Tensor, memory: Tensor | None = None) -> Tensor:
        """Run the layer itself on one sequence, or on several of equal length.

        Args:
            sequence: `(steps, features)`, or of three dimensions in the order that the layer's `batch_first` says.
            memory: `(memory steps, features)`, or of three dimensions in that order; for a decoder, and only for it.

        Returns:
            the output, of the shape of the sequence, without attention weights; gradients flow.

        Raises:
            SeqbatchTypeError: either is not a Tensor, or memory is missing.
            UnsupportedLayerError: memory is given, and the layer is not a decoder.
        """
        several = require_steps("sequence", sequence).dim() == 3 and is_batch_first(self.layer)
        steps = sequence.shape[1 if several else 0]
        hidden = torch.ones(steps, steps, dtype=torch.bool, device=sequence.device).triu(1)
        # Not by `is_causal`, because PyTorch's mask for it hides what `add_bias_kv` and `add_zero_attn` add.
        if isinstance(self.layer, DECODER_TYPES):
            if memory is None:
                raise missing_memory(self)
            decoded: Tensor = self.layer(sequence, require_steps("memory", memory), hidden, tgt_is_causal=False)
            return decoded
        if memory is not None:
            raise _not_a_decoder(self)
        if isinstance(self.layer, nn.MultiheadAttention):
            output: Tensor = self.layer(sequence, sequence, sequence, attn_mask=hidden, need_weights=False)[0]
            return output
        result: Tensor = self.layer(sequence, hidden, is_causal=False)
        return result


def _not_a_decoder(layer: Causal) -> SeqbatchTypeError:
    """Build the error for memory that is given to `Causal` of another layer than a decoder."""
    remedy = "A causal mask is for steps of one sequence. Wrap a decoder"
    if isinstance(layer.layer, nn.MultiheadAttention):
        remedy += ", or call encode(layer.layer, queries, memory) for attention to all of memory"
    return without_memory(layer, f"{remedy}.", f"of {type_name(layer.layer)}")


@register_encoder(Causal)
@outside_graphs
def _(layer: Causal, batch: SequenceBatch) -> SequenceBatch:
    if isinstance(layer.layer, DECODER_TYPES):
        raise missing_memory(layer)
    kept = keeps_forward(layer, Causal)
    is_stock = is_stock_attention(layer.layer)
    if kept:
        require_attention_input(layer.layer, batch, is_stock)
    return run_attention(layer.layer, batch, layer, is_stock=is_stock and kept and is_untouched(layer), causal=True)


@register_cross_attention(Causal)
@outside_graphs
def _(layer: Causal, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
    if not isinstance(layer.layer, DECODER_TYPES):
        raise _not_a_decoder(layer)
    kept = keeps_forward(layer, Causal)
    is_stock = is_stock_attention(layer.layer)
    if kept:
        require_cross_attention_input(layer.layer, queries, memory, is_stock)
    is_stock = is_stock and kept and is_untouched(layer)
    return run_cross_attention(layer.layer, queries, memory, layer, is_stock=is_stock, causal=True)


register_features(Causal, features_of)
register_features(Causal, memory_features_of, of_memory=True)
