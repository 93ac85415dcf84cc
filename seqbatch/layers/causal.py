"""Causal: runs attention layers with a causal mask."""

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._checks.arguments import require_steps
from seqbatch._checks.grammar import complaint, type_name
from seqbatch._checks.tracing import outside_graphs
from seqbatch._encode.registry import register_encoder
from seqbatch._encoders._layer_checks import keeps_forward, register_features
from seqbatch._encoders._stock_layers import is_stock_attention, is_untouched
from seqbatch._encoders.attention import (
    ATTENTION_TYPES,
    features_of,
    is_batch_first,
    require_attention_input,
    run_attention,
)
from seqbatch.errors import SeqbatchTypeError


class Causal(nn.Module):
    """Runs an attention layer with a causal mask: each step attends to itself and to those before it.

    PyTorch's layers need such a mask, of the size of the sequence, at every call. Wrap a layer that predicts the next
    step once instead. Every step also attends to what `add_bias_kv` and `add_zero_attn` add.

    Args:
        layer: an `nn.MultiheadAttention`, used as self-attention, an `nn.TransformerEncoderLayer` or an
            `nn.TransformerEncoder`.

    Raises:
        SeqbatchTypeError: the layer is of another type.

    >>> from seqbatch.layers import Causal
    >>> layer = Causal(nn.TransformerEncoderLayer(8, 2, dropout=0.0))
    >>> xs, ys = torch.randn(10, 8), torch.randn(7, 8)
    >>> hs_x, hs_y = encode(layer, [xs, ys])
    >>> torch.testing.assert_close(encode(layer, xs[:4]), hs_x[:4])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if not isinstance(layer, ATTENTION_TYPES):
            must = "be an nn.MultiheadAttention, nn.TransformerEncoderLayer or nn.TransformerEncoder"
            raise complaint(SeqbatchTypeError, "layer", must, type_name(layer))
        self.layer = layer

    def forward(self, sequence: Tensor) -> Tensor:
        """Run the layer itself on one sequence, or on several of equal length.

        Args:
            sequence: `(steps, features)`, or of three dimensions in the order that the layer's `batch_first` says.

        Returns:
            the output, of the same shape, without attention weights; gradients flow.

        Raises:
            SeqbatchTypeError: it is not a Tensor.
        """
        several = require_steps("sequence", sequence).dim() == 3 and is_batch_first(self.layer)
        steps = sequence.shape[1 if several else 0]
        hidden = torch.ones(steps, steps, dtype=torch.bool, device=sequence.device).triu(1)
        if isinstance(self.layer, nn.MultiheadAttention):
            output: Tensor = self.layer(sequence, sequence, sequence, attn_mask=hidden, need_weights=False)[0]
            return output
        # Not by `is_causal`, because PyTorch's mask for it hides what `add_bias_kv` and `add_zero_attn` add.
        result: Tensor = self.layer(sequence, hidden, is_causal=False)
        return result


@register_encoder(Causal)
@outside_graphs
def _(layer: Causal, batch: SequenceBatch) -> SequenceBatch:
    kept = keeps_forward(layer, Causal)
    is_stock = is_stock_attention(layer.layer)
    if kept:
        require_attention_input(layer.layer, batch, is_stock)
    return run_attention(layer.layer, batch, layer, is_stock=is_stock and kept and is_untouched(layer), causal=True)


register_features(Causal, features_of)
