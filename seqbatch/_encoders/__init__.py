"""The built-in encoders, one file per family; importing this registers them, as any plug-in does."""

from seqbatch._encoders import (  # noqa: F401  # importing them registers them
    attention,
    cells,
    channel_dropout,
    containers,
    convolution,
    cross_attention,
    normalization,
    pointwise,
    recurrent,
    recurrent_shortcut,
    shape,
)
