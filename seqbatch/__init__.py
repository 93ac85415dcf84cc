"""seqbatch: recurrent and other layers over sequences of unequal length, exactly as if each ran alone."""

import torch

import seqbatch._pytrees  # registers batches and states
import seqbatch.encoders  # registers the built-in encoders
import seqbatch.layers  # noqa: F401  # and those of its own layers
from seqbatch._lengths import Lengths as _Lengths
from seqbatch._registry import is_recurrent, register_encoder, register_recurrent
from seqbatch.batch import SequenceBatch
from seqbatch.container_state import ContainerState
from seqbatch.encode import encode, encode_with_state
from seqbatch.errors import (
    SeqbatchError,
    SeqbatchIndexError,
    SeqbatchTypeError,
    SeqbatchValueError,
    UnsupportedLayerError,
)
from seqbatch.state import LSTMState, RNNState

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
    "register_encoder",
    "register_recurrent",
]

# So that `torch.load` with its default weights_only=True reads checkpoints that hold batches and states. This, the
# pytrees and the operators are all that importing seqbatch tells torch, and it concerns these classes alone.
torch.serialization.add_safe_globals([ContainerState, LSTMState, RNNState, SequenceBatch, _Lengths])
