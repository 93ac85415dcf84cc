"""Single steps, as in acting, decoding and beam search: from a state to a state, against calling the layer itself.

Each is called on one step of 1, 32 or 256 sequences. PyTorch's layers take `(1, batch, features)`, its cells
`(batch, features)`; seqbatch takes a batch of that many sequences, whose structure is made once, as in such a loop.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import medians
from torch import Tensor, nn

from seqbatch import SequenceBatch, encode_with_state

LAYERS: dict[str, Any] = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN": nn.RNN,
    "LSTMCell": nn.LSTMCell,
    "GRUCell": nn.GRUCell,
    "RNNCell": nn.RNNCell,
}
BATCHES = (1, 32, 256)
SIZE = 64
# A call takes some microseconds, so that more rounds cost nothing.
ROUNDS = 40


def measure(name: str, batch: int, training: bool, rounds: int) -> dict[str, Any]:
    """Measure one step of one layer; return milliseconds of seqbatch and of the layer itself."""
    torch.manual_seed(0)
    layer: nn.Module = LAYERS[name](SIZE, SIZE)
    rows = torch.randn(batch, SIZE, requires_grad=training)
    structure = SequenceBatch(rows.detach(), [1] * batch)
    _, start = encode_with_state(layer, structure)
    start = start.detach()
    hx = start.to_torch()
    given = rows.unsqueeze(0)
    if isinstance(layer, nn.RNNCellBase):
        given, hx = rows, tuple(part[0] for part in hx) if isinstance(hx, tuple) else hx[0]

    def by_seqbatch() -> Tensor:
        outputs, _ = encode_with_state(layer, structure.with_values(rows), start)
        return outputs.values

    def itself() -> Tensor:
        found = layer(given, hx)
        output: Tensor = found if isinstance(found, Tensor) else found[0]
        return output

    calls = {"seqbatch": by_seqbatch, "itself": itself}
    torch.testing.assert_close(*(call().flatten() for call in calls.values()))
    timed = {way: partial(_run, call, [rows, *layer.parameters()], training) for way, call in calls.items()}
    return {"workload": f"{batch} x 1", "layer": name, "training": training, "ms": medians(timed, rounds * ROUNDS)}


def _run(call: Callable[[], Tensor], sources: list[Tensor], training: bool) -> None:
    """Run one way: forward, and for training back to the gradients of the step and the weights."""
    if not training:
        with torch.no_grad():
            call()
        return
    output = call()
    torch.autograd.grad(output, sources, torch.ones_like(output))
