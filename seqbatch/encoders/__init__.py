"""The built-in encoders, one file per family; importing this registers them, as any plug-in does."""

from seqbatch.encoders import attention, cells, container, convolution, normalization, pointwise, recurrent, shape

__all__ = ["attention", "cells", "container", "convolution", "normalization", "pointwise", "recurrent", "shape"]
