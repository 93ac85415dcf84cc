"""torch.export of what else a graph holds: layouts, joins, pools, dropout, lists, autocast."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_models import ALL_0, PATTERNS, SMALL, signals, tokens
from torch import Tensor, nn
from torch.export import Dim, export
from torch.testing import assert_close

from seqbatch import LSTMState, SeqbatchError, SequenceBatch, encode, encode_with_state
from seqbatch.layers import LockedDropout, MeanPool, WordDropout

STEPS, BATCH = Dim("steps", min=0), Dim("batch", min=0)


class Calls(nn.Module):
    """A model that calls a function with its layer."""

    def __init__(self, function: Callable[..., Any], layer: nn.Module) -> None:
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, *batches: Any) -> Any:
        return self.function(self.layer, *batches)


def layouts(layer: nn.Module, batch: SequenceBatch) -> Any:
    padded = batch.to_padded(batch_first=False, padding_side="left", total_length=12, padding_value=7.0)
    return padded, batch.mask(batch_first=True, total_length=12).int(), batch.offsets


def joins(layer: nn.Module, batch: SequenceBatch) -> Any:
    other = SequenceBatch(batch.values, batch.structure.tensor)
    joined = SequenceBatch.concat([batch.map(torch.add, other), other])
    return joined.values, joined.sum()


def encoded(layer: nn.Module, batch: SequenceBatch) -> Any:
    return encode(layer, batch).values


def autocasts(layer: nn.Module, batch: SequenceBatch) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return encode(layer, batch).values.float()


@pytest.mark.parametrize(
    ("function", "layer"),
    [
        (layouts, nn.Identity()),
        (joins, nn.Identity()),
        (encoded, nn.Sequential(nn.GRU(4, 3), MeanPool())),
        (encoded, nn.Sequential(LockedDropout(0.5), WordDropout(0.5), nn.LSTM(4, 3, num_layers=2, dropout=0.5))),
        (autocasts, nn.GRU(4, 3)),
        (autocasts, nn.LSTM(4, 3)),
    ],
)
def test_what_else_a_graph_holds(function: Callable[..., Any], layer: nn.Module) -> None:
    model = Calls(function, layer).eval()
    program = export(model, (signals([3, 2, 4]),), dynamic_shapes=(([{0: STEPS}, {0: BATCH}],),)).module()
    for lengths in (*PATTERNS.values(), ALL_0):
        batch = signals(lengths)
        with torch.no_grad():
            assert_close(program(batch), model(batch), rtol=2e-2, atol=2e-2)


def test_a_state_goes_in_and_out() -> None:
    def call(layer: nn.Module, batch: SequenceBatch, state: LSTMState) -> Any:
        return encode_with_state(layer, batch, state)

    def state_of(number: int) -> LSTMState:
        return LSTMState(torch.randn(2, 1, number, 3), torch.randn(2, 1, number, 3))

    model = Calls(call, nn.LSTM(4, 3, num_layers=2)).eval()
    shapes = (([{0: STEPS}, {0: BATCH}], [{2: BATCH}, {2: BATCH}]),)
    program = export(model, (signals([3, 2, 4, 1, 5]), state_of(5)), dynamic_shapes=shapes).module()
    for lengths in (PATTERNS | SMALL).values():
        batch, state = signals(lengths), state_of(len(lengths))
        found, end = program(batch, state)
        with torch.no_grad():
            wanted, last = model(batch, state)
        assert found.lengths == wanted.lengths
        assert_close([found.values, end.hidden, end.cell], [wanted.values, last.hidden, last.cell])


def test_dropout_of_a_model_in_training_mode_is_in_the_graph() -> None:
    layer = nn.Sequential(LockedDropout(0.5), nn.GRU(4, 64, num_layers=3, dropout=0.5))
    model = Calls(encoded, layer).train()
    program = export(model, (signals([3, 2, 4]),), dynamic_shapes=(([{0: STEPS}, {0: BATCH}],),)).module()
    batch = signals([5, 30])
    assert not torch.equal(program(batch), program(batch))
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("seqbatch.gru.default") == 3
    assert names.count("aten.dropout.default") == 3  # two between the layers, and the locked one


def test_lists_of_sequences() -> None:
    model = Calls(lambda layer, *xs: encode(layer, [*xs]), nn.GRU(4, 3)).eval()
    first, second = Dim("first", min=0), Dim("second", min=0)
    given = torch.randn(3, 4), torch.randn(5, 4)
    program = export(model, given, dynamic_shapes=(({0: first}, {0: second}),)).module()
    for lengths in ((2, 6), (4, 4), (1, 9)):
        xs: list[Tensor] = [torch.randn(length, 4) for length in lengths]
        with torch.no_grad():
            assert_close(program(*xs), model(*xs))


def test_a_layer_without_an_encoder() -> None:
    with pytest.raises(SeqbatchError, match="a layer of type Dropout3d, of which no encoder is known yet"):
        export(Calls(encoded, nn.Dropout3d()), (signals([3, 2]),))


def test_padding_of_integers() -> None:
    def call(layer: nn.Module, batch: SequenceBatch) -> Tensor:
        return batch.to_padded(batch_first=True, padding_value=7)

    model = Calls(call, nn.Identity())
    assert_close(export(model, (tokens([3, 2]),)).module()(tokens([3, 2])), model(tokens([3, 2])))
