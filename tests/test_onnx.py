"""seqbatch.onnx: what onnxruntime makes of exported models, at sizes never seen at export, with poisoned padding."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from graph_models import LAYERS, PATTERNS, SMALL, Tagger, check_alone, signals, tokens
from torch import Tensor, nn
from torch.testing import assert_close

import seqbatch.onnx
from seqbatch import (
    LSTMState,
    RNNState,
    SeqbatchError,
    SeqbatchTypeError,
    SeqbatchValueError,
    SequenceBatch,
    UnsupportedLayerError,
    encode,
    encode_with_state,
)

# Of what PyTorch's exporter does itself.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is",
    "ignore:`torch.jit.*` is deprecated",
    "ignore:.*onnx.*:DeprecationWarning",
)
SIZES = {name: lengths for name, lengths in (PATTERNS | SMALL).items() if lengths}


class Session:
    """An exported model, run by onnxruntime."""

    def __init__(self, model: nn.Module, example: SequenceBatch, path: Path, *, batch_first: bool = True) -> None:
        self.program = seqbatch.onnx.export(model.eval(), example, path, batch_first=batch_first)
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.batch_first = batch_first

    def __call__(self, batch: SequenceBatch) -> list[Tensor]:
        """Run it on a batch, padded by what must reach no result."""
        fill = float("nan") if batch.dtype.is_floating_point else 10**9
        padded = batch.to_padded(batch_first=self.batch_first, padding_value=fill, total_length=batch.max_length + 2)
        given = {"padded": padded.detach().numpy(), "lengths": np.array(batch.lengths, np.int64)}
        return [torch.from_numpy(result) for result in self.session.run(None, given)]

    def nodes(self) -> list[str]:
        return [node.op_type for node in self.program.model.graph]


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_a_model(kind: str, tmp_path: Path) -> None:
    model = Tagger(kind)
    run = Session(model, tokens([3, 5, 0]), tmp_path / "model.onnx")
    assert run.nodes().count(kind.upper()) == model.rnn.num_layers
    for lengths in SIZES.values():
        batch = tokens(lengths)
        scores, means, *parts = run(batch)
        outputs = SequenceBatch.from_padded(scores, lengths, batch_first=True)
        state: Any = LSTMState(*parts) if kind == "lstm" else RNNState(*parts)
        check_alone(model, batch, (outputs, means, state))
        assert_close(scores, outputs.to_padded(batch_first=True))  # with zeros in its padding


class Encoded(nn.Module):
    """One layer, from a state of ones."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, batch: SequenceBatch) -> Any:
        rows = self.layer.num_layers, 2 if self.layer.bidirectional else 1
        ones = batch.values.new_ones(*rows, batch.batch_size, self.layer.hidden_size)
        state: Any = LSTMState(ones, -ones) if isinstance(self.layer, nn.LSTM) else RNNState(ones)
        return encode_with_state(self.layer, batch, state)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(4, 3, bias=False),
        nn.LSTM(4, 3, num_layers=3, bidirectional=True, dropout=0.5),
        nn.GRU(4, 3, bias=False, bidirectional=True, batch_first=True),
        nn.GRU(4, 3, num_layers=2),
        nn.RNN(4, 3, num_layers=2, bidirectional=True),
        nn.RNN(4, 3, nonlinearity="relu", bias=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_and_states(layer: Any, batch_first: bool, tmp_path: Path) -> None:
    model = Encoded(layer)
    run = Session(model, signals([3, 5, 0]), tmp_path / "model.onnx", batch_first=batch_first)
    for lengths in SIZES.values():
        batch = signals(lengths)
        with torch.no_grad():
            outputs, state = model(batch)
        found, *parts = run(batch)
        assert_close(found, outputs.to_padded(batch_first=batch_first))
        assert_close(parts, [*state._tensors])


class Reduced(nn.Module):
    """All reductions of a batch."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def forward(self, batch: SequenceBatch) -> list[Any]:
        return [getattr(batch, name)() for name in self.names]


@pytest.mark.parametrize("features", [(), (2,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_reductions(features: tuple[int, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    names = ["first", "last", "max", "min", "reverse", "sum"]
    names += ["mean", "softmax"] if dtype.is_floating_point else []
    model = Reduced(names)

    def make(lengths: list[int]) -> SequenceBatch:
        generator = torch.Generator().manual_seed(0)
        values = torch.randint(-9, 9, (sum(lengths), *features), generator=generator).to(dtype)
        return SequenceBatch(values, lengths)

    run = Session(model, make([3, 5, 0]), tmp_path / "model.onnx")
    for lengths in SIZES.values():
        results = model(make(lengths))
        wanted = [one.to_padded(batch_first=True) if isinstance(one, SequenceBatch) else one for one in results]
        assert_close(run(make(lengths)), wanted)


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = seqbatch.onnx.export(Tagger("gru").eval(), tokens([3, 5]), batch_first=True)
    assert [value.name for value in program.model.graph.inputs] == ["padded", "lengths"]
    assert [*tmp_path.iterdir()] == []


class Convolved(nn.Module):
    """A model with a layer that runs by the numbers of lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(4, 3, 3)

    def forward(self, batch: SequenceBatch) -> SequenceBatch:
        return encode(self.layer, batch)


@pytest.mark.parametrize(
    ("model", "example", "kind", "said"),
    [
        (3, signals([3, 2]), SeqbatchTypeError, r"^`model` must be an nn\.Module; got an int\.$"),
        (Tagger("gru"), tokens([3, 2]), SeqbatchValueError, r"`model` must be in evaluation mode; got training mode\."),
        (
            Tagger("gru").eval(),
            [torch.zeros(3)],
            SeqbatchTypeError,
            r"^`example` must be a SequenceBatch; got a list\.$",
        ),
        (
            Tagger("gru").eval(),
            tokens([3]),
            SeqbatchValueError,
            r"^`example` must have 2 sequences and 2 steps at least",
        ),
        (Tagger("gru").eval(), tokens([1, 0]), SeqbatchValueError, r"^`example` must have 2 sequences and 2 steps at"),
        (
            Tagger("projected").eval(),
            tokens([3, 2]),
            UnsupportedLayerError,
            r"got an nn\.LSTM with proj_size, of which",
        ),
        (Convolved().eval(), signals([4, 3]), SeqbatchError, r"got a layer of type Conv1d\. Call it outside"),
    ],
)
def test_what_is_refused(model: Any, example: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        seqbatch.onnx.export(model, example, batch_first=True)


def test_all_kinds_are_there() -> None:
    assert {*LAYERS} == {"lstm", "projected", "gru", "rnn"}
