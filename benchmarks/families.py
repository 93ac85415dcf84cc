"""The layers that are not recurrent layers of PyTorch: who is measured on each, and how.

All go from a list of tensors to a list of tensors; pools to one tensor, a row for each sequence. Left out is what draws
at random anew in every call, as LockedDropout does, because results could not be compared.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
import by_hand
import torch
from measure import bearable, medians
from torch import Tensor, nn
from workloads import Sequences

from seqbatch import SequenceBatch, encode
from seqbatch.layers import (
    AdditiveAttention,
    AttentionPool,
    Causal,
    DotProductAttention,
    LayerNormLSTM,
    MaxPool,
    MeanPool,
)

# From a layer and sequences to the outputs; layers are of many types, each with calls of its own.
Way = Callable[[Any, list[Tensor]], list[Tensor]]
# Seconds that one call may take; above them it is left out.
PATIENCE = {"one by one": 0.5}
HEADS = 4
TOKENS = 1000


def _cell_alone(cell: Any, sequence: Tensor) -> Tensor:
    return torch.stack(by_hand.loop(cell, sequence))


def _windows_alone(layer: Any, sequence: Tensor) -> Tensor:
    output: Tensor = layer(sequence.T).T
    return output


@attrs.frozen
class Family:
    """A layer: how it is made of a size, run on padded sequences by hand, and run on one sequence alone.

    If it `takes_tokens`, sequences are token ids. If it `pools`, the result is one tensor. If sequences are `together`
    in training, the result of one depends on the others, so that a sequence cannot run alone. A layer `over_memory`
    attends to the sequences in reverse order, so that the lengths of queries and of memory are independent.
    """

    make: Callable[[int], nn.Module]
    by_hand: Way
    alone: Callable[..., Tensor] = attrs.field(default=lambda layer, *given: layer(*given), kw_only=True)
    takes_tokens: bool = attrs.field(default=False, kw_only=True)
    pools: bool = attrs.field(default=False, kw_only=True)
    together: bool = attrs.field(default=False, kw_only=True)
    over_memory: bool = attrs.field(default=False, kw_only=True)

    def layer(self, size: int, device: str) -> nn.Module:
        """A layer with random weights, those too that PyTorch sets to zeros or ones, behind which faults could hide."""
        layer = self.make(size).to(device)
        for parameter in layer.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter)
        return layer

    def ways(self, training: bool) -> dict[str, Way]:
        """Those that are exact; seqbatch is the first."""
        ours: Way = _pool if self.pools else _over_memory if self.over_memory else encode
        found = {"seqbatch": ours, "padded by hand": self.by_hand}
        return found if training and self.together else {**found, "one by one": self._one_by_one}

    def _one_by_one(self, layer: Any, sequences: list[Tensor]) -> list[Tensor]:
        given = [sequences, sequences[::-1]] if self.over_memory else [sequences]
        outputs = [self.alone(layer, *one) for one in zip(*given, strict=True)]
        return [torch.stack(outputs)] if self.pools else outputs


def _pool(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    return [encode(layer, SequenceBatch.from_sequences(sequences)).values]


def _over_memory(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    outputs: list[Tensor] = encode(layer, sequences, sequences[::-1])
    return outputs


def _attention_of(size: int) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(size, HEADS, batch_first=True)


def _transformer_of(size: int) -> nn.TransformerEncoderLayer:
    # With relu, whose gradient jumps at 0, rounding alone may give other gradients.
    return nn.TransformerEncoderLayer(size, HEADS, 4 * size, dropout=0.0, activation="gelu", batch_first=True)


def _decoder_of(size: int) -> nn.Module:
    return Causal(nn.TransformerDecoderLayer(size, HEADS, 4 * size, 0.0, "gelu", batch_first=True))


def _tagger_of(size: int) -> nn.Module:
    return nn.Sequential(nn.Embedding(TOKENS, size), nn.LSTM(size, size), nn.Linear(size, size))


def _images_of(_: int) -> nn.Module:
    # As layers of speech models; without ReLU, because rounding alone may give other gradients where it jumps.
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1))


def _images_alone(layer: Any, sequence: Tensor) -> Tensor:
    output: Tensor = layer(sequence[None, None])[0].transpose(0, 1)
    return output


def _every_other(kind: Callable[..., nn.Module]) -> Callable[[int], nn.Module]:
    return lambda _: kind(3, stride=2, padding=1)


FAMILIES: dict[str, Family] = {
    "LSTMCell": Family(lambda n: nn.LSTMCell(n, n), by_hand.cell_steps, alone=_cell_alone),
    "GRUCell": Family(lambda n: nn.GRUCell(n, n), by_hand.cell_steps, alone=_cell_alone),
    "RNNCell": Family(lambda n: nn.RNNCell(n, n), by_hand.cell_steps, alone=_cell_alone),
    "LayerNormLSTM": Family(
        lambda n: LayerNormLSTM(n, n),
        lambda layer, xs: by_hand.cell_steps(layer.cell, xs),
        alone=lambda layer, x: layer(x)[0],
    ),
    "Conv1d": Family(lambda n: nn.Conv1d(n, n, 3, padding=1), by_hand.windows, alone=_windows_alone),
    "Conv1d, strided": Family(
        lambda n: nn.Conv1d(n, n, 3, stride=2, padding=1), partial(by_hand.windows, stride=2), alone=_windows_alone
    ),
    "Conv1d, dilated": Family(
        lambda n: nn.Conv1d(n, n, 3, dilation=2, padding=2), by_hand.windows, alone=_windows_alone
    ),
    "Conv2d, two": Family(_images_of, by_hand.images, alone=_images_alone),
    "MaxPool1d": Family(
        _every_other(nn.MaxPool1d), partial(by_hand.windows, stride=2, value=-torch.inf), alone=_windows_alone
    ),
    "AvgPool1d": Family(_every_other(nn.AvgPool1d), partial(by_hand.windows, stride=2), alone=_windows_alone),
    "MultiheadAttention": Family(
        _attention_of, by_hand.attention, alone=lambda layer, x: layer(x, x, x, need_weights=False)[0]
    ),
    "Causal": Family(lambda n: Causal(_attention_of(n)), lambda layer, xs: by_hand.causal(layer.layer, xs)),
    "TransformerEncoderLayer": Family(_transformer_of, by_hand.transformer),
    "TransformerEncoder": Family(lambda n: nn.TransformerEncoder(_transformer_of(n), 2), by_hand.transformer),
    "MultiheadAttention, over memory": Family(
        _attention_of,
        by_hand.attention_to_memory,
        alone=lambda layer, x, m: layer(x, m, m, need_weights=False)[0],
        over_memory=True,
    ),
    "TransformerDecoderLayer, causal": Family(
        _decoder_of, lambda layer, xs: by_hand.decoder(layer.layer, xs), over_memory=True
    ),
    "AdditiveAttention": Family(lambda n: AdditiveAttention(n, n, n), by_hand.additive, over_memory=True),
    "DotProductAttention": Family(lambda n: DotProductAttention(n, n), by_hand.dot_product, over_memory=True),
    "LayerNorm": Family(nn.LayerNorm, by_hand.steps),
    "BatchNorm1d": Family(nn.BatchNorm1d, by_hand.real_steps, together=True),
    "GroupNorm": Family(lambda n: nn.GroupNorm(HEADS, n), by_hand.step_samples),
    "Linear": Family(lambda n: nn.Linear(n, n), by_hand.steps),
    "Embedding": Family(lambda n: nn.Embedding(TOKENS, n), by_hand.steps, takes_tokens=True),
    "MeanPool": Family(lambda _: MeanPool(), by_hand.mean, alone=lambda _, x: x.mean(0), pools=True),
    "MaxPool": Family(lambda _: MaxPool(), by_hand.maximum, alone=lambda _, x: x.amax(0), pools=True),
    "AttentionPool": Family(
        AttentionPool, by_hand.attention_pool, alone=lambda layer, x: (x @ layer.query).softmax(0) @ x, pools=True
    ),
    "Embedding, LSTM, Linear": Family(
        _tagger_of, by_hand.tagger, alone=lambda layer, x: layer[2](layer[1](layer[0](x))[0]), takes_tokens=True
    ),
}


def measure(name: str, workload: Sequences, training: bool, rounds: int, device: str) -> dict[str, Any]:
    """Measure all ways of running a layer of the workload's size; give the milliseconds of each."""
    torch.manual_seed(0)
    family = FAMILIES[name]
    layer = family.layer(workload.features, device).train(training)
    given = attrs.evolve(workload, features=0) if family.takes_tokens else workload
    sequences = given.sequences(training, device)
    ways = family.ways(training)
    # Random ones, because equal gradients of the outputs of a norm give its input no gradient.
    gradients = [torch.randn_like(output) for output in run(ways["seqbatch"], layer, sequences, [])] if training else []
    taken = check(ways, layer, sequences, gradients)
    kept = bearable(ways, taken, PATIENCE)
    ms = medians({way: partial(run, kept[way], layer, sequences, gradients) for way in kept}, rounds)
    return {"workload": workload.name, "layer": name, "training": training, "ms": ms}


def run(way: Way, layer: nn.Module, sequences: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """Run one way: forward, and given the gradients of the outputs, back to those of sequences and weights."""
    if not gradients:
        with torch.no_grad():
            return way(layer, sequences)
    outputs = way(layer, sequences)
    sources = [one for one in (*sequences, *layer.parameters()) if one.requires_grad]
    return [*outputs, *torch.autograd.grad(outputs, sources, gradients)]


def check(
    ways: Mapping[str, Way], layer: nn.Module, sequences: list[Tensor], gradients: list[Tensor]
) -> dict[str, float]:
    """Raise unless all ways give what the one by hand gives: outputs, and gradients for training.

    Returns:
        seconds that each took.
    """
    results, taken = {}, {}
    for name, way in ways.items():
        start = time.perf_counter()
        results[name] = run(way, layer, sequences, gradients)
        taken[name] = time.perf_counter() - start
    for result in results.values():
        for found, wanted in zip(result, results["padded by hand"], strict=True):
            # Sums over all steps are rounded in another order by each, the more so the more steps there are: gradients
            # of a small kernel reach thousands, where others of the same tensor are near 0.
            largest = max(1.0, float(wanted.detach().abs().max()))
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * largest)
    return taken
