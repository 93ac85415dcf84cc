"""The block engine: `torch.lstm` on blocks of padded steps, where it takes oneDNN's fused kernel; LSTM on CPU.

Sequences stand longest first, and time is cut into blocks. A block from step a to step b holds the sequences that run
at a, padded to b; its state, of the sequences still running at b, starts the next block. In the padding one more input
feature shuts the input gate and opens the forget gate wide, so that the cell of a sequence that has ended is held.
"""

from itertools import chain

import torch
from torch import Tensor, nn

from seqbatch._lengths import Lengths
from seqbatch._modes import is_transformed, wants_gradients
from seqbatch.engines import _laid_out
from seqbatch.engines._blocks import Blocks, blocks_of, turn_plan
from seqbatch.engines._interface import Hidden
from seqbatch.engines._laid_out import lay_out, run_laid_out
from seqbatch.engines._probe import is_lstm
from seqbatch.engines._stack import draws, run_stack, weights_of
from seqbatch.layouts import rearrange

# By how much padding shuts and opens gates: far beyond where a sigmoid is 0 or 1 in single precision, and beyond what
# weights add against it, up to some 1e17 each, since hidden states are 1 at most.
SHUT = 1e18


def run(layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine` says; for an `nn.LSTM` without projection, hooks or a `forward` of its own."""
    weights = [weights_of(layer, index) for index in range(layer.num_layers)]
    sources = chain([values], hidden or (), chain.from_iterable(chain.from_iterable(weights)))
    once = _laid_out.IS_THERE and not (is_transformed() or wants_gradients(sources))
    overhead = block_overhead(layer.input_size, layer.hidden_size, once and not draws(layer))
    blocks = lengths.plan(blocks_of, overhead, device=values.device)
    turn = lengths.plan(turn_plan, overhead, device=values.device) if layer.bidirectional else None
    first = rearrange(_mark(values) if blocks.padded else values, blocks.enter)

    def run_layer(index: int, current: Tensor, start: list[Hidden]) -> tuple[Tensor, Hidden]:
        if index and blocks.padded:
            current = torch.cat([current, first[:, -1:]], 1)
        inputs = [current] if turn is None else [current, rearrange(current, turn)]
        ways = zip(inputs, weights[index], start, strict=True)
        results = [_run_way(blocks, once, *parts) for parts in ways]
        outputs, hiddens, cells = zip(*results, strict=True)
        if turn is None:
            return outputs[0], (hiddens[0], cells[0])
        output = torch.cat([outputs[0], rearrange(outputs[1], turn)], 1)
        return output, (torch.cat(hiddens), torch.cat(cells))

    rows, final = run_stack(layer, first, lengths, hidden, run_layer)
    return rearrange(rows, blocks.leave), final


def probe() -> bool:
    """Try whether this PyTorch has `torch.lstm`, which it does not document, and it does what it should."""
    return is_lstm(_run_block)


def block_overhead(input_size: int, hidden_size: int, once: bool) -> int:
    """How many rows take as long as one block more: a call, and to lay out the weights anew unless that is done once.

    Fitted to 2 to 64 sequences of 5 to 60 steps, of sizes 64 to 1024, in inference and training.
    """
    elements = hidden_size * (input_size + hidden_size)
    return (16 if once else 64) + 2**20 // elements


def _mark(values: Tensor) -> Tensor:
    """Add a feature that is 1 on padding, and a row of padding after the last step."""
    marked = nn.functional.pad(values, (0, 1, 0, 1))
    marked.detach()[-1, -1] = 1
    return marked


def _run_way(
    blocks: Blocks, once: bool, rows: Tensor, weights: list[Tensor], start: Hidden
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one layer in one direction; its output, and its hidden state and cell at each sequence's end."""
    if blocks.padded:
        weights = [_with_gates(weights[0]), *weights[1:]]
    run_block = _run_block
    if once and len(blocks.shapes) > 1:
        run_block, weights = run_laid_out, lay_out(weights, *blocks.shapes[0])
    hidden, cell = start
    outputs, cells = [], []
    parts = rows.split([steps * count for steps, count in blocks.shapes])
    for part, (steps, count) in zip(parts, blocks.shapes, strict=True):
        if len(cell[0]) > count:
            cells.append(cell[:, count:])
            hidden, cell = hidden[:, :count], cell[:, :count]
        output, hidden, cell = run_block(part.view(steps, count, part.shape[1]), (hidden, cell), weights)
        outputs.append(output.flatten(0, 1))
    cells.append(cell)
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    ended = cell if len(cells) == 1 else torch.cat(cells[::-1], 1)
    return output, output.index_select(0, blocks.ends)[None], ended.index_select(1, blocks.rank)


def _run_block(block: Tensor, start: Hidden, weights: list[Tensor]) -> tuple[Tensor, ...]:
    """Run a block; its output, hidden state and cell."""
    results: tuple[Tensor, ...] = torch.lstm(block, start, weights, len(weights) > 2, 1, 0.0, False, False, False)
    return results


def _with_gates(weight: Tensor) -> Tensor:
    """Add the weights of the feature that tells padding: to input, forget, new and output gate."""
    size = len(weight) // 4
    more = nn.functional.pad(weight, (0, 1))
    gates = more.detach()[:, -1]
    gates[:size], gates[size : 2 * size] = -SHUT, SHUT
    return more


IS_THERE = probe()
