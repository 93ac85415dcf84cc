"""Layers for sequences that PyTorch lacks; each also takes one plain Tensor `(steps, *features)`.

Importing this registers their encoders, as any plug-in does.
"""

from seqbatch.layers.attention_to_memory import AdditiveAttention, DotProductAttention
from seqbatch.layers.causal import Causal
from seqbatch.layers.dropout import LockedDropout, WordDropout
from seqbatch.layers.layer_norm_lstm import LayerNormLSTM, LayerNormLSTMCell
from seqbatch.layers.pooling import AttentionPool, FirstStep, LastStep, MaxPool, MeanPool, MinPool, SumPool
from seqbatch.layers.residual import Residual
from seqbatch.layers.two_way import TwoWay

__all__ = [
    "AdditiveAttention",
    "AttentionPool",
    "Causal",
    "DotProductAttention",
    "FirstStep",
    "LastStep",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "LockedDropout",
    "MaxPool",
    "MeanPool",
    "MinPool",
    "Residual",
    "SumPool",
    "TwoWay",
    "WordDropout",
]
