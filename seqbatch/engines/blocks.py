"""The block engine: `torch.lstm` on blocks of padded steps, where it takes oneDNN's fused kernel; LSTM on CPU.

Sequences stand longest first, and time is cut into blocks. A block from step a to step b holds the sequences that run
at a, padded to b; its state, of the sequences still running at b, starts the next block. In the padding one more input
feature shuts the input gate and opens the forget gate wide, so that the cell of a sequence that has ended is held.
"""

import torch
from torch import Tensor, nn

from seqbatch._lengths import Lengths
from seqbatch.engines._blocks import Blocks, blocks_of, turn_plan
from seqbatch.engines._interface import Hidden
from seqbatch.engines._stack import run_stack, weights_of
from seqbatch.layouts import rearrange

# By how much padding shuts and opens gates: far beyond where a sigmoid is 0 or 1 in single precision, and beyond what
# weights add against it, up to some 1e17 each, since hidden states are 1 at most.
SHUT = 1e18


def run(layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine` says; for an `nn.LSTM` without projection, hooks or a `forward` of its own."""
    overhead = block_overhead(layer.input_size, layer.hidden_size)
    rank = lengths.on("rank", values.device)
    blocks = lengths.plan(blocks_of, overhead, device=values.device)
    turn = lengths.plan(turn_plan, overhead, device=values.device) if layer.bidirectional else None

    def run_layer(index: int, current: Tensor, start: Hidden) -> tuple[Tensor, Hidden]:
        inputs = [current] if turn is None else [current, rearrange(current, turn)]
        results = [
            _run_way(blocks, rank, rows, weights, tuple(part[way : way + 1] for part in start))
            for way, (rows, weights) in enumerate(zip(inputs, weights_of(layer, index), strict=True))
        ]
        outputs, hiddens, cells = zip(*results, strict=True)
        if turn is None:
            return outputs[0], (hiddens[0], cells[0])
        output = torch.cat([outputs[0], rearrange(outputs[1], turn)], 1)
        return output, (torch.cat(hiddens), torch.cat(cells))

    return run_stack(layer, values, lengths, hidden, blocks.enter, run_layer)


def probe() -> bool:
    """Try whether this PyTorch has `torch.lstm`, which it does not document, and it does what it should."""
    one, gates = (torch.ones(*shape, device="cpu", dtype=torch.float32) for shape in ((1, 1, 1), (4, 1)))
    state = torch.zeros_like(one)
    try:
        with torch.no_grad():
            output, _, cell = torch.lstm(one, (state, state), [gates, gates], False, 1, 0.0, False, False, False)
    except Exception:  # whatever it raises, there is another way
        return False
    opened = one.sigmoid()
    wanted = opened * one.tanh()
    return torch.allclose(cell, wanted) and torch.allclose(output, opened * wanted.tanh())


IS_THERE = probe()


def block_overhead(input_size: int, hidden_size: int) -> int:
    """How many rows take as long as one block more: to lay out the weights anew, and a call.

    Fitted to `torch.lstm` on 2 to 32 sequences of 5 to 60 steps, of sizes 64 to 1024, in inference and training.
    """
    return 64 + 2**20 // (hidden_size * (input_size + hidden_size))


def _run_way(
    blocks: Blocks, rank: Tensor, rows: Tensor, weights: list[Tensor], start: Hidden
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one layer in one direction; its output, and its hidden state and cell at each sequence's end."""
    if blocks.padding is not None:
        rows = torch.cat([rows, blocks.padding.to(rows.dtype)], 1)
        weights = [torch.cat([weights[0], _gates(weights[0])], 1), *weights[1:]]
    hidden, cell = start
    outputs, cells = [], []
    parts = rows.split([steps * count for steps, count in blocks.shapes])
    counts = [count for _, count in blocks.shapes[1:]]
    for part, (steps, count), running in zip(parts, blocks.shapes, [*counts, 0], strict=True):
        block = part.view(steps, count, part.shape[1])
        output, hidden, cell = torch.lstm(block, (hidden, cell), weights, len(weights) > 2, 1, 0.0, False, False, False)
        outputs.append(output.flatten(0, 1))
        cells.append(cell[:, running:])
        hidden, cell = hidden[:, :running], cell[:, :running]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output, output.index_select(0, blocks.ends)[None], torch.cat(cells[::-1], 1).index_select(1, rank)


def _gates(weight: Tensor) -> Tensor:
    """The weights of the feature that tells padding: to input, forget, new and output gate."""
    size = len(weight) // 4
    gates = weight.new_zeros(4 * size, 1)
    gates[:size], gates[size : 2 * size] = -SHUT, SHUT
    return gates
