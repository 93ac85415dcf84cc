"""The padded engine: the layer itself on one padded tensor, for outputs alone; layers of one direction.

There nothing after the last step of a sequence reaches its outputs, but only the state, which is then not that after
the last step: whoever asks for the state needs another engine.
"""

from torch import Tensor, nn

from seqbatch._lengths import Lengths
from seqbatch.layouts import from_padded, to_padded


def run(layer: nn.RNNBase, values: Tensor, lengths: Lengths) -> Tensor:
    """Run a layer of one direction, without hooks or a `forward` of its own, from a state of zeros.

    Args:
        layer: the layer.
        values: `(total_steps, input_size)`.
        lengths: one sequence at least, and none of no steps.

    Returns:
        the outputs `(total_steps, size)`.
    """
    padded = to_padded(values, lengths, layer.batch_first, "right", lengths.longest, 0)
    outputs: Tensor = layer(padded)[0]
    return from_padded(outputs, lengths, layer.batch_first, "right")
