"""Exporters of PyTorch that keep the lengths of their example: each raises, and names what serves all lengths."""

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from graph_models import signals
from onnx_models import IGNORED, Layered
from torch import Tensor, nn
from torch.jit.frontend import NotSupportedError
from torch.testing import assert_close

import seqbatch
import seqbatch.onnx
from seqbatch import LSTMState, RNNState, SeqbatchError, SequenceBatch, encode, encode_with_state, scan
from seqbatch.layers import Residual

# All of these exporters are deprecated, and tracing warns of every number that it keeps.
DEPRECATED = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore:The feature will be removed",
    "ignore:You are using the legacy TorchScript",
)
pytestmark = [IGNORED, DEPRECATED]

MUST = "`model` must be exported in a way that serves all lengths; got "
SERVES_ALL = " Call torch.export.export, or seqbatch.onnx.export for ONNX."
TRACE, SCRIPT = (re.escape(f"{MUST}torch.jit.{how}.{SERVES_ALL}") for how in ("trace", "script"))
ONNX = re.escape(f"{MUST}torch.onnx.export. Call seqbatch.onnx.export, which takes a SequenceBatch as its example.")
PADDED, LENGTHS = torch.randn(2, 5, 4), torch.tensor([5, 2])
KEPT = signals([5, 2])


@pytest.fixture(autouse=True)
def _autocast_cache() -> Iterator[None]:
    """Restore what `torch.onnx.export(dynamo=False)` leaves switched off in this thread where a model raises."""
    yield
    torch.set_autocast_cache_enabled(True)


class Model(nn.Module):
    """A model of padded sequences and their lengths."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.lstm, self.residual = function, nn.LSTM(4, 3), Residual(nn.Linear(4, 4))

    def forward(self, padded: Tensor, lengths: Tensor) -> Any:
        return self.function(self, padded, lengths)


def batch_of(padded: Tensor, lengths: Tensor) -> SequenceBatch:
    return SequenceBatch.from_padded(padded, lengths, batch_first=True)


MODELS: dict[str, Callable[..., Any]] = {
    "encode a list": lambda model, padded, lengths: tuple(encode(model.lstm, [padded[0], padded[1][:2]])),
    "encode a Tensor": lambda model, padded, lengths: encode(model.lstm, padded[0]),
    "encode a batch": lambda model, padded, lengths: encode(model.lstm, batch_of(padded, lengths)).values,
    "encode a batch from outside": lambda model, padded, lengths: encode(model.lstm, KEPT).values + padded.sum(),
    "encode_with_state": lambda model, *given: encode_with_state(model.lstm, batch_of(*given))[1].hidden,
    "scan a Tensor": lambda model, padded, lengths: scan(lambda inputs, state: (inputs, state), padded[0], ())[0],
    "to_padded": lambda model, padded, lengths: batch_of(padded, lengths).to_padded(batch_first=True),
    "mask": lambda model, padded, lengths: batch_of(padded, lengths).mask(batch_first=True),
    "mean": lambda model, padded, lengths: batch_of(padded, lengths).mean(),
    "an index": lambda model, padded, lengths: batch_of(padded, lengths)[0],
    "lengths": lambda model, padded, lengths: padded[:, : SequenceBatch(padded.flatten(0, 1), [5, 5]).max_length],
    "other values": lambda model, padded, lengths: KEPT.with_values(padded.flatten(0, 1)[:7]).sum(),
    "select": lambda model, padded, lengths: RNNState(padded[None, :1]).select(lengths // 5).hidden,
    "reset": lambda model, padded, lengths: LSTMState(padded[None, :1], padded[None, :1]).reset(lengths // 5).cell,
    "a layer of seqbatch": lambda model, padded, lengths: model.residual(padded[0]),
}


@pytest.mark.parametrize("what", MODELS)
def test_tracing_is_refused_and_leaves_nothing_behind(what: str) -> None:
    model = Model(MODELS[what]).eval()
    wanted = model(PADDED, LENGTHS)
    ways: list[Any] = [torch.jit.trace, lambda model, given: torch.jit.trace_module(model, {"forward": given})]
    for trace in ways:
        with pytest.raises(SeqbatchError, match=f"^{TRACE}"):
            trace(model, (PADDED, LENGTHS))
    assert_close(model(PADDED, LENGTHS), wanted)


@pytest.mark.parametrize("what", MODELS)
@pytest.mark.graphs
def test_torch_onnx_export_is_refused_by_either_of_its_ways(what: str, tmp_path: Any) -> None:
    model = Model(MODELS[what]).eval()
    wanted = model(PADDED, LENGTHS)
    with pytest.raises(SeqbatchError, match=f"^{ONNX}"):
        torch.onnx.export(model, (PADDED, LENGTHS), tmp_path / "model.onnx", dynamo=False)
    with pytest.raises(torch.onnx.OnnxExporterError, match=ONNX):
        torch.onnx.export(model, (PADDED, LENGTHS), dynamo=True, verbose=False)
    assert_close(model(PADDED, LENGTHS), wanted)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.graphs
def test_what_serves_all_lengths_goes_on_after_a_refusal(strict: bool) -> None:
    model = Layered(nn.GRU(4, 3)).eval()
    with pytest.raises(SeqbatchError, match=f"^{TRACE}"):
        torch.jit.trace(Model(MODELS["mean"]), (PADDED, LENGTHS))
    with pytest.raises(torch.onnx.OnnxExporterError, match=ONNX):
        torch.onnx.export(Model(MODELS["mean"]).eval(), (PADDED, LENGTHS), dynamo=True, verbose=False)
    with torch._dynamo.config.patch(allow_rnn=True):
        exported = torch.export.export(model, (KEPT,), strict=strict).module()
    assert_close(exported(KEPT).values, encode(model.layer, KEPT).values)
    assert seqbatch.onnx.export(model, KEPT, batch_first=True).model.graph.outputs[0].name == "output"


def keep(inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return inputs, state


class Encodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3)

    def forward(self, sequence: Tensor) -> Tensor:
        return encode(self.lstm, sequence)


class KeepsState(Encodes):
    def forward(self, sequence: Tensor) -> Tensor:
        return encode_with_state(self.lstm, sequence)[0]


class Scans(nn.Module):
    def forward(self, sequence: Tensor) -> Tensor:
        return scan(keep, sequence, sequence[:1])[0]


class MakesBatch(nn.Module):
    def forward(self, padded: Tensor, lengths: Tensor) -> Tensor:
        return SequenceBatch.from_padded(padded, lengths, batch_first=True).mean()


class MakesBatchOfValues(nn.Module):
    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        return seqbatch.SequenceBatch(values, lengths).values


class TakesBatch(nn.Module):
    def forward(self, batch: SequenceBatch) -> Tensor:
        return batch.mean()


class TakesState(nn.Module):
    def forward(self, state: LSTMState) -> Tensor:
        return state.last()


class MakesState(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return RNNState(hidden).last()


class Holds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.example, self.start, self.kinds = KEPT, RNNState(torch.zeros(1, 1, 2, 3)), (SequenceBatch, RNNState)

    def forward(self, values: Tensor) -> Tensor:
        return 2 * values


class ReadsBatch(Holds):
    def forward(self, values: Tensor) -> Tensor:
        return values + self.example.values


@pytest.mark.parametrize("kind", [Encodes, KeepsState, Scans])
def test_scripting_is_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(SeqbatchError, match=f"^{SCRIPT}"):
        torch.jit.script(kind())


@pytest.mark.parametrize("kind", [MakesBatch, MakesBatchOfValues, TakesBatch, TakesState, MakesState, ReadsBatch])
def test_pytorch_itself_refuses_to_script_the_methods_of_batches_and_states(kind: type[nn.Module]) -> None:
    # An OSError, because classes whose `__module__` is not their file have no source that scripting finds.
    errors = RuntimeError, NotSupportedError, OSError
    with pytest.raises(errors, match=r"SequenceBatch|RNNState|LSTMState"):
        torch.jit.script(kind())


def test_a_model_that_only_holds_a_batch_and_a_state_is_scripted() -> None:
    scripted = torch.jit.script(Holds())
    assert_close(scripted(KEPT.values), 2 * KEPT.values)


@pytest.mark.parametrize("function", [encode, encode_with_state])
def test_the_functions_themselves_are_not_scripted(function: Callable[..., Any]) -> None:
    with pytest.raises(SeqbatchError, match=f"^{SCRIPT}"):
        torch.jit.script(function)


def test_models_beside_seqbatch_are_traced_and_scripted() -> None:
    ways: list[Any] = [lambda model: torch.jit.trace(model, KEPT.values), torch.jit.script]
    for make in ways:
        assert_close(make(nn.Linear(4, 3).eval())(KEPT.values).shape, torch.Size([7, 3]))


def test_other_threads_are_not_refused_while_one_traces_or_exports() -> None:
    found: list[Any] = []
    wanted = KEPT.mean()

    class Beside(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            def run() -> None:
                try:
                    found.append(SequenceBatch(KEPT.values, [5, 2]).mean())
                except SeqbatchError as error:
                    found.append(error)

            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
            return values + 1

    torch.jit.trace(Beside(), KEPT.values, check_trace=False)
    torch.onnx.export(Beside().eval(), (KEPT.values,), dynamo=True, verbose=False)
    assert len(found) >= 2
    for one in found:
        assert_close(one, wanted)
