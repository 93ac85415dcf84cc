"""Hypothesis strategies: lengths of the six patterns, dtypes, batches, recurrent layers and their states."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seqbatch import LSTMState, RNNState
from seqbatch.testing._strategies import PATTERNS as PATTERNS

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
RARE = (
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
)
DTYPES = (*FLOATS, *COMPLEX, *INTEGERS, *RARE, torch.bool)


def for_all_lengths(**others: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test with drawn `lengths` of each of the six patterns, and the other arguments drawn as given."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("pattern", PATTERNS)
        @given(data=st.data())
        def run(pattern: str, data: st.DataObject) -> None:
            lengths = data.draw(PATTERNS[pattern], label="lengths")
            test(lengths=lengths, **{name: data.draw(other, label=name) for name, other in others.items()})

        run.__name__ = test.__name__
        run.__doc__ = test.__doc__
        decorated: Callable[..., None] = run
        return decorated

    return decorate


def make(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Make a tensor of random values that every dtype can hold exactly, and, if floating, are all distinct in kind."""
    generator = torch.Generator().manual_seed(seed)
    if dtype in FLOATS or dtype in COMPLEX:
        wide = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(shape, dtype=wide, generator=generator).to(dtype)
    return torch.randint(0, 2 if dtype is torch.bool else 9, shape, generator=generator).to(dtype)


def sequences(
    lengths: list[int], features: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    """Make sequences of the lengths, leaves that require gradients if they can."""
    made = [make((length, *features), dtype, seed + i) for i, length in enumerate(lengths)]
    return [one.requires_grad_() if dtype in FLOATS or dtype in COMPLEX else one for one in made]


features = st.lists(st.integers(0, 3), max_size=3).map(tuple)


RECURRENT_KINDS = ("lstm", "projected", "gru", "tanh", "relu")


@st.composite
def recurrent_layers(
    draw: st.DrawFn, dtype: torch.dtype = torch.float64, kinds: Sequence[str] = RECURRENT_KINDS
) -> nn.LSTM | nn.GRU | nn.RNN:
    """Layers of some kinds and every option; dropout is 0, or 1, so that what it does between layers is certain."""
    hidden, num_layers = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    options: dict[str, Any] = {
        "num_layers": num_layers,
        "bidirectional": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 1.0])) if num_layers > 1 else 0.0,
        "dtype": dtype,
    }
    kind = draw(st.sampled_from(kinds))
    torch.default_generator.manual_seed(draw(st.integers(0, 3)))
    size = draw(st.integers(1, 3))
    if kind == "projected":
        return nn.LSTM(size, hidden + 1, proj_size=draw(st.integers(1, hidden)), **options)
    if kind == "lstm":
        return nn.LSTM(size, hidden, **options)
    if kind == "gru":
        return nn.GRU(size, hidden, **options)
    return nn.RNN(size, hidden, nonlinearity=kind, **options)


@st.composite
def cells(draw: st.DrawFn, kind: Any, dtype: torch.dtype = torch.float64) -> nn.RNNCellBase:
    """Cells of one of PyTorch's kinds and every option."""
    torch.default_generator.manual_seed(draw(st.integers(0, 3)))
    options: dict[str, Any] = {"dtype": dtype, "bias": draw(st.booleans())}
    if kind is nn.RNNCell:
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    cell: nn.RNNCellBase = kind(draw(st.integers(1, 3)), draw(st.integers(1, 4)), **options)
    return cell


def state_for(layer: nn.RNNBase | nn.RNNCellBase, batch: int, seed: int = 7) -> LSTMState | RNNState:
    """Make a random initial state for a layer or cell, of leaves that require gradients."""
    rows = (layer.num_layers, 2 if layer.bidirectional else 1) if isinstance(layer, nn.RNNBase) else (1, 1)
    size = getattr(layer, "proj_size", 0) or layer.hidden_size
    dtype = next(layer.parameters()).dtype
    hidden = make((*rows, batch, size), dtype, seed).requires_grad_()
    if isinstance(layer, (nn.LSTM, nn.LSTMCell)):
        cell = make((*rows, batch, layer.hidden_size), dtype, seed + 1).requires_grad_()
        return LSTMState(hidden, cell)
    return RNNState(hidden)
