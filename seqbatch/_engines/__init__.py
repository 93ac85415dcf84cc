"""How a recurrent layer is run, one engine a file: from flat values and lengths to flat values and states.

To add an engine, write a module with the functions of `Engine`, and list it in the order of `_choice.ENGINES`.
"""

from seqbatch._engines._choice import choose, describe_call
from seqbatch._engines._interface import Engine, EngineCall, Hidden
from seqbatch._engines._stack import LayerForm
from seqbatch._engines._stock import is_stock_recurrent, takes_packed
from seqbatch._engines.native import apply_with_gradients, can_run_cell, run_cell

__all__ = [
    "Engine",
    "EngineCall",
    "Hidden",
    "LayerForm",
    "apply_with_gradients",
    "can_run_cell",
    "choose",
    "describe_call",
    "is_stock_recurrent",
    "run_cell",
    "takes_packed",
]
