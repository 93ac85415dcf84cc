"""seqbatch: recurrent and other layers over sequences of unequal length, exactly as if each ran alone."""

import torch

import seqbatch._encoders  # registers the built-in encoders
import seqbatch.layers  # noqa: F401  # and those of its own layers
from seqbatch._batch import SequenceBatch
from seqbatch._encode import encode, encode_with_state
from seqbatch._encode.registry import is_recurrent, register_cross_attention, register_encoder, register_recurrent
from seqbatch._encode.scan import scan
from seqbatch._state import ContainerState, LSTMState, RNNState
from seqbatch._structure.sequence_lengths import Lengths as _Lengths
from seqbatch.errors import (
    SeqbatchError,
    SeqbatchIndexError,
    SeqbatchTypeError,
    SeqbatchValueError,
    UnsupportedLayerError,
)

__all__ = [
    "ContainerState",
    "LSTMState",
    "RNNState",
    "SeqbatchError",
    "SeqbatchIndexError",
    "SeqbatchTypeError",
    "SeqbatchValueError",
    "SequenceBatch",
    "UnsupportedLayerError",
    "encode",
    "encode_with_state",
    "is_recurrent",
    "register_cross_attention",
    "register_encoder",
    "register_recurrent",
    "scan",
]

# So that `torch.load` with its default weights_only=True reads checkpoints that hold batches and states. This, the
# pytrees and the operators are all that importing seqbatch registers with torch, for these classes alone.
torch.serialization.add_safe_globals([ContainerState, LSTMState, RNNState, SequenceBatch, _Lengths])
