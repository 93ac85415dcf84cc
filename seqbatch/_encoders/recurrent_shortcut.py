"""The shortcut of recurrent layers and cells: compiled code checks the call and runs it, if nothing is unusual.

`_kernels/shortcut.cpp` checks what `recurrent` and `cells` check, and leaves to them whatever it does not know: other
types of layers, dtypes and devices, hooks, transforms, empty sequences, and all errors.
"""

from functools import partial

import torch
from torch import Tensor, nn

from seqbatch import _kernels
from seqbatch._batch import SequenceBatch
from seqbatch._encode.registry import register_shortcut
from seqbatch._engines import LayerForm, apply_with_gradients
from seqbatch._state import LSTMState, RNNState
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import interception_checks

# By type of layer: its number in recurrent.h, or -1 for RNN, which has two; and whether it is a cell.
_LAYER_TYPES: dict[type[nn.Module], tuple[int, bool]] = {
    nn.LSTM: (0, False),
    nn.GRU: (1, False),
    nn.RNN: (-1, False),
    nn.LSTMCell: (0, True),
    nn.GRUCell: (1, True),
    nn.RNNCell: (-1, True),
}


def register_shortcuts() -> None:
    """Register compiled code for PyTorch's recurrent layers and cells, if the kernels are there."""
    if not _kernels.IS_THERE:
        return
    objects = {
        **interception_checks(),
        "is_grad_enabled": torch.is_grad_enabled,
        "is_autocast_enabled": torch.is_autocast_enabled,
        "threads": torch.get_num_threads,
        # Without the format it keeps strides of axes of size 1.
        "empty_like": partial(torch.empty_like, memory_format=torch.contiguous_format),
        "kernels": _kernels,  # whose `IS_THERE` and `ISA_NUMBER` count at each call
        "cpu": "cpu",
        "float32": torch.float32,
        "float64": torch.float64,
        "Tensor": Tensor,
        "Parameter": nn.Parameter,
        "module_call": nn.Module.__call__,
        "SequenceBatch": SequenceBatch,
        "Lengths": Lengths,
        "LSTMState": LSTMState,
        "RNNState": RNNState,
        "LayerForm": LayerForm,
        "apply": apply_with_gradients,
    }
    layer_types = [(layer_type, layer_type.forward, *row) for layer_type, row in _LAYER_TYPES.items()]
    run = _kernels.configure_shortcut(objects, layer_types)
    for layer_type in _LAYER_TYPES:
        register_shortcut(layer_type, run)


register_shortcuts()
