"""How a recurrent layer is run, one file a way: from flat values and lengths to flat values and states."""

from torch import nn

from seqbatch.engines import packed
from seqbatch.engines._interface import Engine, Hidden

__all__ = ["Engine", "Hidden", "choose"]


def choose(layer: nn.Module) -> Engine:
    """Choose the way to run a layer: for now PyTorch's packed path, which serves every layer and device."""
    return packed.run
