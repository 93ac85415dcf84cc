"""The built-in encoders, one file per family; importing this registers them, as any plug-in does."""

from seqbatch._encoders import (
    attention,
    cells,
    channel_dropout,
    containers,
    convolution,
    cross_attention,
    normalization,
    pointwise,
    recurrent,
    shape,
)

__all__ = [
    "attention",
    "cells",
    "channel_dropout",
    "containers",
    "convolution",
    "cross_attention",
    "normalization",
    "pointwise",
    "recurrent",
    "shape",
]
