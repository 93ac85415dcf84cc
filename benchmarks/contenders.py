"""Who is measured: ways to run a recurrent layer, each from a list of tensors to a list of tensors.

torch.nested is not among them: PyTorch's recurrent layers raise on a nested tensor, and so do their cells. What it can
do is measured in conversions.py.
"""

from collections.abc import Callable
from typing import Any

import peers
import torch
from runtime import onnx_runtime
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence
from workloads import Workload

from seqbatch import encode

Contender = Callable[[nn.RNNBase, list[Tensor]], list[Tensor]]


def by_seqbatch(layer: nn.RNNBase, sequences: list[Tensor]) -> list[Tensor]:
    """One call."""
    return encode(layer, sequences)


def packed_by_hand(layer: nn.RNNBase, sequences: list[Tensor]) -> list[Tensor]:
    """What the tutorials teach, and the only exact way of PyTorch itself for every layer."""
    output, _ = layer(pack_sequence(sequences, enforce_sorted=False))
    padded, lengths = pad_packed_sequence(output, batch_first=True)
    return [row[:length] for row, length in zip(padded, lengths.tolist(), strict=True)]


def padded_by_hand(layer: nn.RNNBase, sequences: list[Tensor]) -> list[Tensor]:
    """Exact for the outputs of a one-way layer, whose real steps come before the padding; not for its final cell."""
    output, _ = layer(pad_sequence(sequences))
    return [output[: len(sequence), i] for i, sequence in enumerate(sequences)]


def one_by_one(layer: nn.RNNBase, sequences: list[Tensor]) -> list[Tensor]:
    """A loop over the sequences."""
    return [layer(sequence)[0] for sequence in sequences]


def contenders(workload: Workload, layer: nn.RNNBase, training: bool) -> dict[str, Contender]:
    """Those that are exact for a workload and can be had here; seqbatch is the first."""
    found: dict[str, Contender] = {"seqbatch": by_seqbatch, "packed by hand": packed_by_hand}
    if not workload.two_way:
        found["padded by hand"] = padded_by_hand
    if workload.batch <= 64:
        found["one by one"] = one_by_one
    if peers.torchrua() is not None:
        found["torchrua"] = _by_torchrua
    deployed = None if training or layer.weight_hh_l0.is_cuda else onnx_runtime(layer)
    if deployed is not None:
        found["ONNX Runtime"] = deployed
    same = peers.opacus_layer(layer)
    if same is not None:
        # It takes the same packed input, as a layer of its own, made once, as a model would.
        found["opacus"] = lambda _, sequences: packed_by_hand(same, sequences)
    return found


def _by_torchrua(layer: nn.RNNBase, sequences: list[Tensor]) -> list[Tensor]:
    library = peers.torchrua()
    output, _ = layer(library.new_pack(sequences))
    return list(library.cat_pack_split(output))


def limit(workload: Workload, gates: int, training: bool, device: str) -> Callable[[], Any]:
    """The matrix products alone, each as large as it can be: forward, and for training twice as many again."""
    pairs = [
        (torch.empty(rows, inner, device=device).normal_(), torch.empty(inner, gates * size, device=device).normal_())
        for rows, inner, size in workload.products()
    ]
    times = 3 if training else 1

    def run() -> None:
        for _ in range(times):
            for left, right in pairs:
                torch.mm(left, right)

    return run
