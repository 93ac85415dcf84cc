"""Calls of the compiled kernels without an engine: the shortest path to them, for tests of the library itself."""

import torch
from torch import Tensor, nn

from seqbatch import _kernels


def run_lstm(lstm: nn.LSTM, values: Tensor, lengths: list[int], threads: int, isa: int | None = None) -> Tensor:
    """Run a layer with one direction over flat values; return its outputs, which are flat as well."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    index = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    order = torch.tensor([[starts[i] for i in index], [lengths[i] for i in index], index])
    weights = [weight.detach() for weight in lstm.parameters()]
    out = values.new_empty(len(values), lstm.hidden_size)
    call = _kernels.Call(
        kind=0,
        directions=1,
        threads=threads,
        isa=_kernels.ISA_NUMBER if isa is None else isa,
        sequences=len(lengths),
        steps=len(values),
        input_size=lstm.input_size,
        hidden_size=lstm.hidden_size,
        out_stride=lstm.hidden_size,
        starts=order[0].data_ptr(),
        lengths=order[1].data_ptr(),
        index=order[2].data_ptr(),
        x=values.data_ptr(),
    )
    direction = call.direction[0]
    for name, weight in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights, strict=True):
        setattr(direction, name, weight.data_ptr())
    direction.out = out.data_ptr()
    _kernels.forward(call, values.dtype == torch.float64)
    return out
