"""How a recurrent layer is run, one file a way: from flat values and lengths to flat values and states."""

from seqbatch._engines._choice import choose, is_plain
from seqbatch._engines._interface import Engine, Hidden
from seqbatch._engines._stock import takes_packed
from seqbatch._engines.native import reads_weights as kernels_read
from seqbatch._engines.native import run_cell
from seqbatch._engines.native import serves as kernels_serve

__all__ = ["Engine", "Hidden", "choose", "is_plain", "kernels_read", "kernels_serve", "run_cell", "takes_packed"]
