"""seqbatch.onnx: what onnxruntime makes of exported models, at sizes never seen at export, with poisoned padding."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from graph_models import LAYERS, PATTERNS, SMALL, Tagger, check_alone, signals, tokens
from onnx_models import IGNORED, Layered, Session, Told, Within
from reference import REDUCTIONS
from torch import nn
from torch.testing import assert_close

import seqbatch.onnx
from seqbatch import LSTMState, RNNState, SequenceBatch, encode_with_state
from seqbatch._ops import reductions
from seqbatch.onnx._reduction_nodes import _NODES

pytestmark = IGNORED
SIZES = PATTERNS | SMALL


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_a_model(kind: str, tmp_path: Path) -> None:
    model = Tagger(kind)
    run = Session(model, tokens([3, 5, 0]), tmp_path / "model.onnx")
    assert run.nodes().count(type(model.rnn).__name__) == model.rnn.num_layers
    for lengths in SIZES.values():
        batch = tokens(lengths)
        scores, means, *parts = run(batch)
        outputs = SequenceBatch.from_padded(scores, lengths, batch_first=True)
        state: Any = LSTMState(*parts) if kind == "lstm" else RNNState(*parts)
        check_alone(model, batch, (outputs, means, state))
        assert_close(scores, outputs.to_padded(batch_first=True))  # with zeros in its padding


def test_every_reduction_has_nodes() -> None:
    assert _NODES.keys() == reductions.REDUCTIONS.keys()


class Encoded(nn.Module):
    """Layers side by side, each from a state of ones."""

    def __init__(self, layers: list[Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, batch: SequenceBatch) -> list[Any]:
        return [encode_with_state(layer, batch, self.start(layer, batch)) for layer in self.layers]

    def start(self, layer: Any, batch: SequenceBatch) -> Any:
        rows = layer.num_layers, 2 if layer.bidirectional else 1
        ones = batch.values.new_ones(*rows, batch.batch_size, layer.hidden_size)
        return LSTMState(ones, -ones) if isinstance(layer, nn.LSTM) else RNNState(ones)


@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_and_states(batch_first: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers: list[Any] = [
        nn.LSTM(4, 3, bias=False),
        nn.LSTM(4, 20, num_layers=2, bidirectional=True, dropout=0.5),
        nn.GRU(4, 3, bias=False, bidirectional=True, batch_first=True),
        nn.GRU(4, 20, num_layers=2),
        nn.RNN(4, 3, bidirectional=True),
        nn.RNN(4, 3, num_layers=3, nonlinearity="relu", bias=False),
    ]
    layers = layers if batch_first else layers[2:3]
    model = Encoded(layers)
    run = Session(model, signals([3, 5, 0]), tmp_path / "model.onnx", batch_first=batch_first)
    assert len({"LSTM", "GRU", "RNN"} & {*run.nodes()}) == (3 if batch_first else 1)
    for lengths in (SIZES | {"many": [*range(40), 3]}).values():
        batch, found = signals(lengths), iter(run(signals(lengths)))
        with torch.no_grad():
            results = model(batch)
        for layer, (outputs, state) in zip(layers, results, strict=True):
            for wanted in (outputs.to_padded(batch_first=batch_first), *state._parts):
                assert_close(next(found), wanted, msg=f"{layer}, {lengths}")
        assert next(found, None) is None


@pytest.mark.parametrize("layer", [nn.GRU(4, 3), nn.LSTM(4, 3, num_layers=2)])
def test_a_layer_without_gradients(layer: nn.Module, tmp_path: Path) -> None:
    model = Within(layer, torch.no_grad)
    run = Session(model, signals([3, 5, 0]), tmp_path / "model.onnx")
    for lengths in SIZES.values():
        assert_close(run(signals(lengths))[0], model(signals(lengths)).to_padded(batch_first=True))


def test_half_precision(tmp_path: Path) -> None:
    model = Encoded([kind(4, 3, num_layers=2, bidirectional=True).half() for kind in (nn.LSTM, nn.GRU, nn.RNN)])
    run = Session(model, signals([3, 5, 0]).to(torch.float16), tmp_path / "model.onnx")
    for lengths in SIZES.values():
        batch = signals(lengths).to(torch.float16)
        with torch.no_grad():
            results = model(batch)
        wanted = [part for outputs, state in results for part in (outputs.to_padded(batch_first=True), *state._parts)]
        found = run(batch)
        assert {one.dtype for one in found} == {torch.float16}
        # Each rounds elsewhere, every step, to numbers that are 2**-10 apart.
        assert_close(found, wanted, rtol=2**-10, atol=2**-10)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_what_is_not_finite_stays_in_its_sequence(kind: Any, tmp_path: Path) -> None:
    model = Layered(kind(4, 3))
    run = Session(model, signals([5, 3]), tmp_path / "model.onnx")
    for wrong in (float("nan"), float("inf"), float("-inf")):
        batch = signals([5, 3]).clone()
        batch.values[1, 0] = wrong
        with torch.no_grad():
            wanted = model(batch).to_padded(batch_first=True)
        (found,) = run(batch)
        assert wanted.isnan().any() == (wrong != wrong)
        assert not wanted[1].isnan().any()
        assert not found.isnan().any()
        assert_close(found[~wanted.isnan()], wanted[~wanted.isnan()])


def test_complex_numbers_inside_of_a_model(tmp_path: Path) -> None:
    model = Told(lambda batch: batch.map(lambda values: torch.complex(values, values + 1).abs()))
    run = Session(model, signals([3, 5, 0]), tmp_path / "model.onnx")
    for lengths in SIZES.values():
        assert_close(run(signals(lengths))[0], model(signals(lengths)).to_padded(batch_first=True))


def test_double_precision_without_recurrent_layers(tmp_path: Path) -> None:
    model, example = Layered(nn.Linear(4, 3).double()), signals([3, 5, 0]).to(torch.float64)
    run = Session(model, example, tmp_path / "model.onnx")
    for lengths in SIZES.values():
        batch = signals(lengths).to(torch.float64)
        with torch.no_grad():
            assert_close(run(batch)[0], model(batch).to_padded(batch_first=True))


class Reduced(nn.Module):
    """All reductions of a batch that take its dtype."""

    def forward(self, batch: SequenceBatch) -> list[Any]:
        return [how.of(batch) for how in REDUCTIONS.values() if how.can_take(batch.dtype)]


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        ((2, 3), torch.float32),
        ((4,), torch.float64),
        ((), torch.float16),
        ((), torch.int64),
        ((2,), torch.bool),
        ((2,), torch.uint8),
    ],
)
def test_reductions(features: tuple[int, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    model = Reduced()

    def make(lengths: list[int]) -> SequenceBatch:
        generator = torch.Generator().manual_seed(0)
        values = torch.randint(-9 if dtype.is_signed else 0, 9, (sum(lengths), *features), generator=generator).to(
            dtype
        )
        return SequenceBatch(values, lengths)

    def check(batch: SequenceBatch) -> None:
        results = model(batch)
        wanted = [one.to_padded(batch_first=True) if isinstance(one, SequenceBatch) else one for one in results]
        assert_close(run(batch), wanted, equal_nan=True)

    run = Session(model, make([3, 5, 0]), tmp_path / "model.onnx")
    for lengths in SIZES.values():
        check(make(lengths))
        # Fractions too, of which some are not finite: one of a sequence, or all of a step.
        for wrong in (float("nan"), float("inf"), float("-inf")) if dtype.is_floating_point else ():
            values = signals(lengths, 24).values[:, : math.prod(features)].to(dtype)
            values[::3, -1], values[1::4, values.shape[1] // 2], values[2:3] = wrong, -wrong, wrong
            check(SequenceBatch(values.reshape(len(values), *features), lengths))


def test_rows_are_expanded_to_steps(tmp_path: Path) -> None:
    def results(batch: SequenceBatch) -> list[SequenceBatch]:
        rows = [(batch.last() > 0).to(dtype) for dtype in (torch.float32, torch.int64, torch.bool)]
        return [batch.map(torch.add, batch.expand(one)) for one in rows]

    run = Session(Told(results), signals([3, 5, 0]), tmp_path / "model.onnx")
    for lengths in SIZES.values():
        assert_close(run(signals(lengths)), [one.to_padded(batch_first=True) for one in results(signals(lengths))])


class Pair(NamedTuple):
    """Two results with names."""

    left: Any
    right: Any


def test_what_comes_out_has_the_names_of_its_places(tmp_path: Path) -> None:
    def results(batch: SequenceBatch) -> Any:
        total = batch.sum()
        state = LSTMState(batch.values.new_ones(1, 1, batch.batch_size, 4), total[None, None])
        return {"scores": batch, "more": (None, state, total), "a-pair": [Pair(total, total)]}

    run = Session(Told(results), signals([3, 5]), tmp_path / "model.onnx")
    assert run.names() == [
        "output_scores",
        "output_more_1_hidden",
        "output_more_1_cell",
        "output_more_2",
        "output_a_pair_0_left",
        "output_a_pair_0_right",
    ]
    batch = signals([2, 0, 6])
    scores, hidden, *sums = run(batch)
    assert_close(scores, batch.to_padded(batch_first=True))
    assert_close(hidden, torch.ones(1, 1, 3, 4))
    for found in sums:
        assert_close(found.view(3, 4), batch.sum())


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_that_do_not_fit_what_is_padded_stop_the_run(batch_first: bool, tmp_path: Path) -> None:
    run = Session(Told(SequenceBatch.sum), signals([3, 5]), tmp_path / "model.onnx", batch_first=batch_first)
    padded = torch.ones(2, 3, 4) if batch_first else torch.ones(3, 2, 4)
    assert_close(run.given(padded, [3, 0])[0], torch.tensor([[3.0], [0.0]]).expand(2, 4))
    # Four steps of the first sequence would be its three and one of the second.
    for lengths in ([4, 1], [4, 0], [3, 9], [-1, 3], [3], [], [3, 3, 3]):
        with pytest.raises(Exception, match=r"Gather.*out of data bounds"):
            run.given(padded, lengths)


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = seqbatch.onnx.export(Told(SequenceBatch.mean).eval(), signals([3, 5]), batch_first=True)
    assert [value.name for value in program.model.graph.inputs] == ["padded", "lengths"]
    assert [*tmp_path.iterdir()] == []


def test_all_kinds_are_there() -> None:
    assert {*LAYERS} == {"lstm", "projected", "gru", "rnn", "tanh"}
