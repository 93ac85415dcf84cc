"""How a recurrent layer is run, one file a way: from flat values and lengths to flat values and states."""

from seqbatch.engines._choice import choose, is_plain, pads
from seqbatch.engines._forward import takes_packed
from seqbatch.engines._interface import Engine, Hidden

__all__ = ["Engine", "Hidden", "choose", "is_plain", "pads", "takes_packed"]
