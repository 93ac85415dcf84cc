"""The loop over the layers of a recurrent layer, shared by the engines that compute one layer at a time."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from seqbatch._engines._interface import Hidden
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import parameters_of

T = TypeVar("T")
Tensors = tuple[Tensor, ...]


class LayerForm(NamedTuple):  # not an attrs class, because creating one takes twice as long
    """One layer of a recurrent layer without its tensors, which are passed beside it as one sequence.

    The tensors are the inputs `(total_steps, input_size)`; the weights of the first direction, then of the second, in
    PyTorch's order; and the initial states `(directions, batch, size)`, in the caller's order, or none for zeros.

    Attributes:
        mode: as `nn.RNNBase.mode`.
        lengths: of at least one sequence, none of them empty.
        directions: 1 or 2.
        each: the number of weights of one direction.
    """

    mode: str
    lengths: Lengths
    directions: int
    each: int

    def parts_of(self, tensors: Sequence[T]) -> tuple[T, Sequence[T], Sequence[T]]:
        """Split what there is one of for each tensor into that of the inputs, of the weights and of the states."""
        end = 1 + self.directions * self.each
        return tensors[0], tensors[1:end], tensors[end:]

    def of_direction(self, weights: Sequence[T], index: int) -> Sequence[T]:
        """Return the weights of one direction."""
        return weights[index * self.each : (index + 1) * self.each]


# Runs one layer in all its directions, and returns the outputs `(total_steps, directions * size)` and the final states.
RunLayer = Callable[[LayerForm, Tensors], Tensors]


def run_layers(
    layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None, run_layer: RunLayer
) -> tuple[Tensor, Hidden]:
    """Run the layers of a recurrent layer in order, as `Engine.run` says, by a function that runs one of them."""
    directions = 2 if layer.bidirectional else 1
    rows, finals = values, []
    for i in range(layer.num_layers):
        if i and layer.training and layer.dropout:
            rows = nn.functional.dropout(rows, layer.dropout)
        start = () if hidden is None else tuple(part[i * directions : (i + 1) * directions] for part in hidden)
        weights = weights_of(layer, i)
        form = LayerForm(layer.mode, lengths, directions, len(weights) // directions)
        rows, *final = run_layer(form, (rows, *weights, *start))
        finals.append(final)
    return rows, tuple(finals[0]) if len(finals) == 1 else tuple(map(torch.cat, zip(*finals, strict=True)))


def weights_of(layer: nn.RNNBase, index: int) -> tuple[Tensor, ...]:
    """Return the weights of one layer, those of the first direction before those of the second."""
    names = _layer_weight_names(index, bool(layer.bias), bool(layer.proj_size), bool(layer.bidirectional))
    held = parameters_of(layer)
    try:
        return tuple([held[name] for name in names])
    except KeyError:  # because something else may replace a parameter, as a parametrization does
        return tuple(getattr(layer, name) for name in names)


@lru_cache
def _layer_weight_names(index: int, bias: bool, projects: bool, bidirectional: bool) -> list[str]:
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if bias else []), *(["weight_hr"] if projects else [])]
    return [f"{name}_l{index}{suffix}" for suffix in ["", "_reverse"][: 1 + bidirectional] for name in names]
