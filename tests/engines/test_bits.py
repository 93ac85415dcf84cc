"""The law Bits for recurrent layers and cells, which the kernels run: any size, any values, any batch."""

from functools import partial
from typing import Any

import laws
import pytest
import torch
from hypothesis import strategies as st
from parametrize import for_each_kind
from strategies import RECURRENT_KINDS, cells, recurrent_layers, sequences, state_for
from torch import Tensor, nn

from seqbatch import SequenceBatch, _kernels, encode, encode_with_state
from seqbatch.testing import check_bits

pytestmark = pytest.mark.skipif(not _kernels.IS_THERE, reason="only the kernels promise it")
DTYPES = (torch.float32, torch.float64)
CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)

every_kind: dict[str, st.SearchStrategy[nn.Module]] = {
    kind: st.sampled_from(DTYPES).flatmap(partial(recurrent_layers, kinds=[kind])) for kind in RECURRENT_KINDS
}
every_kind |= {kind.__name__: st.sampled_from(DTYPES).flatmap(partial(cells, kind)) for kind in CELLS}


@for_each_kind("layer", every_kind, stateful=st.booleans())
def test_of_layers_and_cells(lengths: list[int], layer: Any, stateful: bool) -> None:
    xs = sequences(lengths, (layer.input_size,), next(layer.parameters()).dtype)
    check_bits(layer, xs, state_for(layer, len(xs)) if stateful else None)


LENGTHS = [7, 1, 3, 3, 9, 2, 5]
MADE: dict[str, Any] = {
    "LSTM": partial(nn.LSTM, bidirectional=True),
    "projected": lambda *sizes, **options: nn.LSTM(*sizes, bidirectional=True, proj_size=sizes[1] // 2, **options),
    "GRU": partial(nn.GRU, bidirectional=True),
    "RNN": partial(nn.RNN, nonlinearity="relu", bidirectional=True),
    **{kind.__name__: kind for kind in CELLS},
}
every_layer = pytest.mark.parametrize("kind", MADE)


# The numbers of features and units. A projection need not fill a vector either.
PROJECTIONS = [(1, 2), (1, 16), (15, 16), (15, 33), (16, 17), (17, 33), (33, 64), (130, 300)]


@pytest.mark.parametrize(("projection", "size"), PROJECTIONS)
@pytest.mark.parametrize("isa", range(_kernels.ISA_NUMBER + 1))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_of_projections(
    projection: int, size: int, isa: int, dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kernels, "ISA_NUMBER", isa)
    laws.seed(0)
    layer = nn.LSTM(5, size, 2, bidirectional=True, bias=bias, proj_size=projection, dtype=dtype)
    check_bits(layer, sequences(LENGTHS, (5,), dtype), state_for(layer, len(LENGTHS)))


def layer_and_state(kind: str, input_size: int, size: int, dtype: torch.dtype, batch: int) -> tuple[Any, Any]:
    laws.seed(0)
    layer = MADE[kind](input_size, size, dtype=dtype)
    return layer, state_for(layer, batch)


@every_layer
@pytest.mark.parametrize("size", [1, 15, 16, 17, 33, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_of_sizes_beside_those_of_a_vector(kind: str, size: int, dtype: torch.dtype) -> None:
    layer, state = layer_and_state(kind, size, size, dtype, len(LENGTHS))
    check_bits(layer, sequences(LENGTHS, (size,), dtype), state)


@every_layer
@pytest.mark.parametrize("isa", range(_kernels.ISA_NUMBER))
def test_by_other_instructions(kind: str, isa: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "ISA_NUMBER", isa)
    for dtype in DTYPES:
        layer, state = layer_and_state(kind, 5, 17, dtype, len(LENGTHS))
        check_bits(layer, sequences(LENGTHS, (5,), dtype), state)


def not_finite(xs: list[Tensor]) -> list[Tensor]:
    for value, x in zip((torch.nan, torch.inf, -torch.inf, 1e30), xs, strict=False):
        x[len(x) // 2, 0] = value
    return xs


VALUES: dict[str, Any] = {
    "NaN and infinity": not_finite,
    "denormal": lambda xs: [x * torch.finfo(x.dtype).tiny / 8 for x in xs],
    "not contiguous": lambda xs: [x.t().contiguous().t() for x in xs],
}


@every_layer
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_of_values(kind: str, values: str, dtype: torch.dtype) -> None:
    layer, state = layer_and_state(kind, 5, 17, dtype, len(LENGTHS))
    check_bits(layer, VALUES[values]([x.detach() for x in sequences(LENGTHS, (5,), dtype)]), state)


@torch.no_grad()
@every_layer
def test_where_denormal_numbers_are_flushed(kind: str) -> None:
    """The flag belongs to the calling thread. A new thread inherits it, but a thread that exists already does not."""
    layer, _ = layer_and_state(kind, 33, 64, torch.float32, 1)
    for name, weight in layer.named_parameters():
        if "bias" in name:
            nn.init.zeros_(weight)
    xs = [torch.finfo(torch.float32).tiny * x for x in sequences([9, 4] * 20, (33,), torch.float32)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        kept = encode(layer, xs)
        torch.set_flush_denormal(True)
        together = encode(layer, xs)
        alone = [encode(layer, [x])[0] for x in xs]
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    assert not torch.equal(torch.cat(together), torch.cat(kept))
    assert torch.equal(torch.cat(together), torch.cat(alone))


def run_one_step(layer: Any, values: Tensor, state: Any) -> list[Tensor]:
    """Run one step of each sequence, and return what must equal a run alone: `(..., batch, size)`."""
    outputs, final = encode_with_state(layer, SequenceBatch(values, [1] * len(values)), state)
    results = [outputs.values, *laws.tensors_of(final)]
    loss = torch.stack([result.square().sum() for result in results]).sum()
    return [*results, *torch.autograd.grad(loss, [values, *laws.tensors_of(state)])]


@every_layer
@pytest.mark.parametrize("batch", [1, 2, 5, 6, 7, 13, 256, 4096])
def test_of_one_step_of_many_sequences(kind: str, batch: int) -> None:
    layer, state = layer_and_state(kind, 33, 17, torch.float32, batch)
    values = torch.randn(batch, 33).requires_grad_()
    together = run_one_step(layer, values, state)
    with torch.no_grad():
        alike = encode_with_state(layer, SequenceBatch(values, [1] * batch), state)[0].values
    laws.assert_same_bits(alike, together[0])
    for i in sorted({0, 1, batch // 3, batch // 2, batch - 2, batch - 1} & {*range(batch)}):
        alone = run_one_step(layer, values[i : i + 1], state[i])
        for found, wanted in zip(together, alone, strict=True):
            laws.assert_same_bits(found[..., i : i + 1, :], wanted)


# Threads share units where sequences are few and weights large. The sequence of 40 steps runs far beyond the others.
@every_layer
@pytest.mark.parametrize(("size", "lengths"), [(200, [6]), (200, [2, 40, 1]), (1024, [2, 3])])
def test_of_few_sequences_with_large_weights(kind: str, size: int, lengths: list[int]) -> None:
    layer, state = layer_and_state(kind, 16, size, torch.float32, len(lengths))
    check_bits(layer, sequences(lengths, (16,), torch.float32), state)


@torch.no_grad()
def test_of_one_very_long_sequence_beside_many_short_ones() -> None:
    laws.seed(0)
    layer, lengths = nn.LSTM(5, 17), [1] * 4096
    lengths[1000] = 65_536
    batch = SequenceBatch(torch.randn(sum(lengths), 5), lengths)
    together, final = encode_with_state(layer, batch)
    for i in (0, 1000, 4095):
        alone, end = encode_with_state(layer, [batch[i]])
        laws.assert_same_bits(together[i], alone[0])
        for found, wanted in zip(laws.tensors_of(final), laws.tensors_of(end), strict=True):
            laws.assert_same_bits(found[..., i : i + 1, :], wanted)
