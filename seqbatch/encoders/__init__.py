"""The built-in encoders, one file a family; importing this registers them, as any plug-in does."""

from seqbatch.encoders import container, pointwise, recurrent

__all__ = ["container", "pointwise", "recurrent"]
