"""Calls of the compiled kernels without an engine: the shortest path to them, for tests of the library itself."""

import torch
from torch import Tensor, nn

from seqbatch import _kernels
from seqbatch._engines import LayerForm
from seqbatch._structure.sequence_lengths import Lengths


def run_lstm(lstm: nn.LSTM, values: Tensor, lengths: list[int], threads: int, isa: int | None = None) -> Tensor:
    """Run a layer with one direction over flat values; return its outputs, which are flat as well."""
    form, weights = LayerForm("LSTM", Lengths(tuple(lengths)), 1, 4), [weight.detach() for weight in lstm.parameters()]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _kernels.forward(form, [values, *weights], keep=False, isa=isa)[0]
    finally:
        torch.set_num_threads(before)
