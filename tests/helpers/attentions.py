"""Layers of attention of every kind and option, and the calls of their kernels, for the tests of their encoders."""

import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from seqbatch import _kernels
from seqbatch.layers import AdditiveAttention, Causal, DotProductAttention

Layer = TypeVar("Layer", bound=nn.Module)

SIZE = 6
ACTIVATIONS: list[Any] = [
    "relu",
    "gelu",
    functional.silu,
    torch.tanh,
    nn.GELU(),
    nn.ReLU(inplace=True),
    lambda values: values.softmax(-1),  # of which only the layer itself knows what it does
]


def spread(layer: Layer, seed: int = 0) -> Layer:
    """Set all weights at random, also those that PyTorch begins with zeros or ones."""
    torch.default_generator.manual_seed(seed)
    for weight in layer.parameters():
        nn.init.uniform_(weight, -1, 1)
    return layer.double()


def record_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """Return a list to which each later call of a kernel is added."""
    run = getattr(_kernels, name)
    made: list[Any] = []

    def record(call: Any, is_double: bool) -> None:
        made.append(call)
        run(call, is_double)

    monkeypatch.setattr(_kernels, name, record)
    return made


@st.composite
def attentions(draw: st.DrawFn) -> nn.MultiheadAttention:
    flags = ("bias", "batch_first", "add_bias_kv", "add_zero_attn")
    options: dict[str, Any] = {name: draw(st.booleans()) for name in flags}
    options |= draw(st.sampled_from([{}, {"kdim": SIZE, "vdim": SIZE}]))
    return nn.MultiheadAttention(SIZE, draw(st.sampled_from([1, 2, 3])), **options)


@st.composite
def encoder_layers(draw: st.DrawFn) -> nn.TransformerEncoderLayer:
    options: dict[str, Any] = {name: draw(st.booleans()) for name in ("bias", "batch_first", "norm_first")}
    activation = draw(st.sampled_from(ACTIVATIONS))
    return nn.TransformerEncoderLayer(SIZE, draw(st.sampled_from([1, 2])), 4, 0.0, activation, **options)


@st.composite
def encoders(draw: st.DrawFn) -> nn.TransformerEncoder:
    norm = draw(st.sampled_from([None, nn.LayerNorm(SIZE), nn.RMSNorm(SIZE)]))
    with warnings.catch_warnings(action="ignore"):  # PyTorch warns which layers it cannot run on nested tensors
        return nn.TransformerEncoder(draw(encoder_layers()), draw(st.integers(1, 2)), norm, draw(st.booleans()))


FAMILY: dict[str, st.SearchStrategy[nn.Module]] = {
    "attention": attentions(),
    "layer": encoder_layers(),
    "encoder": encoders(),
}


@st.composite
def layers(draw: st.DrawFn, families: Sequence[str] = tuple(FAMILY), *, causal: bool | None = None) -> nn.Module:
    """Layers of some families, in training or not; all causal, none, or some."""
    layer = draw(FAMILY[draw(st.sampled_from(families))])
    spread(layer, draw(st.integers(0, 3))).train(draw(st.booleans()))
    return Causal(layer) if (draw(st.booleans()) if causal is None else causal) else layer


# The size of memory, where it may be another than that of the queries.
MEMORY_SIZE = 5


@st.composite
def attentions_to_memory(draw: st.DrawFn) -> nn.MultiheadAttention:
    flags = ("bias", "batch_first", "add_bias_kv", "add_zero_attn")
    options: dict[str, Any] = {name: draw(st.booleans()) for name in flags}
    options |= draw(st.sampled_from([{}, {"kdim": MEMORY_SIZE, "vdim": MEMORY_SIZE}]))
    return nn.MultiheadAttention(SIZE, draw(st.sampled_from([1, 2, 3])), **options)


@st.composite
def decoder_layers(draw: st.DrawFn) -> nn.TransformerDecoderLayer:
    options: dict[str, Any] = {name: draw(st.booleans()) for name in ("bias", "batch_first", "norm_first")}
    activation = draw(st.sampled_from(ACTIVATIONS))
    return nn.TransformerDecoderLayer(SIZE, draw(st.sampled_from([1, 2])), 4, 0.0, activation, **options)


@st.composite
def decoders(draw: st.DrawFn) -> nn.TransformerDecoder:
    norm = draw(st.sampled_from([None, nn.LayerNorm(SIZE), nn.RMSNorm(SIZE)]))
    return nn.TransformerDecoder(draw(decoder_layers()), draw(st.integers(1, 2)), norm)


def memory_size(layer: Any) -> int:
    """Return the size of the memory that a layer attends to."""
    size: int = getattr(layer, "memory_size", getattr(layer, "kdim", SIZE))
    return size


@st.composite
def _ready(draw: st.DrawFn, made: st.SearchStrategy[nn.Module]) -> nn.Module:
    return spread(draw(made), draw(st.integers(0, 3))).train(draw(st.booleans()))


# Layers that attend to memory.
with_memory: dict[str, st.SearchStrategy[nn.Module]] = {
    "attention": _ready(attentions_to_memory()),
    "decoder layer": _ready(decoder_layers()),
    "decoder": _ready(decoders()),
    "decoder layer, causal": _ready(decoder_layers()).map(Causal),
    "decoder, causal": _ready(decoders()).map(Causal),
    "additive": _ready(st.builds(AdditiveAttention, st.just(SIZE), st.just(MEMORY_SIZE), st.sampled_from([1, 3]))),
    "dot product": _ready(st.builds(DotProductAttention, st.just(SIZE), st.sampled_from([1, MEMORY_SIZE]))),
}


every_kind = {
    f"{name}, causal" if causal else name: layers([name], causal=causal) for name in FAMILY for causal in (False, True)
}


class Scaled(nn.Module):
    """A parametrization: twice the weight."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class OwnAttention(nn.MultiheadAttention):
    """Gives no weights, and minus what it should."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (-super().forward(query, key, value, *args, **kwargs)[0],)


class TensorOnly(nn.MultiheadAttention):
    """Gives no tuple."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Any:  # type: ignore[override]  # takes no more
        return -super().forward(query, key, value)[0]


class Gate(nn.Linear):
    """A layer that PyTorch does not know."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).sigmoid()


class Tagged(nn.Parameter):
    """A weight of a library, which does something else in a product."""
