"""seqbatch.onnx: what it refuses to export, and what the file refuses to run."""

import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from graph_models import Tagger, signals, tokens
from onnx_models import IGNORED, Layered, Told, Within
from torch import nn

import seqbatch.onnx
from seqbatch import SeqbatchError, SeqbatchTypeError, SeqbatchValueError, UnsupportedLayerError, encode

pytestmark = IGNORED


def hooked() -> nn.Module:
    model = Tagger("gru")
    model.rnn.register_forward_hook(lambda *given: None)
    return model.eval()


def half_in_training() -> nn.Module:
    model = Tagger("gru").eval()
    model.head[0].train()
    return model


GRU, CONVOLVED = Tagger("gru").eval(), Layered(nn.Conv1d(4, 3, 3)).eval()
DECODER = nn.TransformerDecoderLayer(4, 2, 8)
OVER_MEMORY = Told(lambda batch: encode(DECODER, batch, batch)).eval()
MUST_GIVE = r"^`model` must return SequenceBatches, states and Tensors; got "


@pytest.mark.parametrize(
    ("model", "example", "kind", "said"),
    [
        (3, signals([3, 2]), SeqbatchTypeError, r"^`model` must be an nn\.Module; got an int\.$"),
        (Tagger("gru"), tokens([3, 2]), SeqbatchValueError, r"`model` must be in evaluation mode; got training mode\."),
        (half_in_training(), tokens([3, 2]), SeqbatchValueError, r"; got training mode of `head\.0` in it\. Call its"),
        (GRU, [torch.zeros(3)], SeqbatchTypeError, r"^`example` must be a SequenceBatch; got a list\.$"),
        (GRU, tokens([3]), SeqbatchValueError, r"^`example` must have at least 2 sequences and 2 steps"),
        (GRU, tokens([1, 0]), SeqbatchValueError, r"^`example` must have at least 2 sequences and 2 st"),
        (
            Tagger("projected").eval(),
            tokens([3, 2]),
            UnsupportedLayerError,
            r"got an nn\.LSTM with proj_size, of which",
        ),
        (CONVOLVED, signals([4, 3]), SeqbatchError, r"got a layer of type Conv1d\. Call it outside"),
        (OVER_MEMORY, signals([4, 3]), SeqbatchError, r"got a layer of type TransformerDecoderLayer\. Call it outside"),
        (hooked(), tokens([3, 2]), SeqbatchError, r"got a layer of type GRU with hooks\. Remove each"),
        (Told(lambda batch: (batch, 3)).eval(), signals([3, 2]), SeqbatchTypeError, f"{MUST_GIVE}an int\\.$"),
        (Told(lambda batch: None).eval(), signals([3, 2]), SeqbatchTypeError, f"{MUST_GIVE}nothing\\.$"),
        (
            Told(lambda batch: {0: batch, "0": batch}).eval(),
            signals([3, 2]),
            SeqbatchValueError,
            r"^`model` must return results whose names differ; got output_0 twice\.$",
        ),
        (
            Told(lambda batch: batch.map(torch.erfinv)).eval(),
            signals([3, 2]),
            torch.onnx.OnnxExporterError,
            r"prims\.erf_inv",
        ),
        (
            Told(lambda batch: batch.map(lambda values: torch.complex(values, values))).eval(),
            signals([3, 2]),
            torch.onnx.OnnxExporterError,
            r"Error when translating node .*complex",
        ),
        (
            Told(lambda batch: batch.map(lambda values: torch.complex(values, values).exp().abs())).eval(),
            signals([3, 2]),
            torch.onnx.OnnxExporterError,
            r"aten\.exp",
        ),
    ],
)
def test_what_is_refused(model: Any, example: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        seqbatch.onnx.export(model, example, batch_first=True)


def in_bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


PROJECTED = "an nn.LSTM with proj_size, of which it has none."
NOT_RUN = ", which ONNX Runtime does not run. Call float() on the model, and .to(torch.float32) on the example"
DOUBLE, HALF = f"torch.float64{NOT_RUN}.", f"torch.bfloat16{NOT_RUN}, and export outside of torch.autocast."


@pytest.mark.parametrize(
    ("layer", "context", "found"),
    [
        (nn.LSTM(4, 3, proj_size=2), nullcontext, PROJECTED),
        (nn.LSTM(4, 3, proj_size=2), torch.no_grad, PROJECTED),
        (nn.LSTM(4, 3, proj_size=2, bias=False, bidirectional=True), torch.no_grad, PROJECTED),
        (nn.LSTM(4, 3), in_bfloat16, f"an nn.LSTM in {HALF}"),
        (nn.GRU(4, 3), in_bfloat16, f"an nn.GRU in {HALF}"),
        (nn.RNN(4, 3), in_bfloat16, f"an nn.RNN in {HALF}"),
        (nn.GRU(4, 3, dtype=torch.bfloat16), nullcontext, f"an nn.GRU in {HALF}"),
        (nn.LSTM(4, 3).double(), nullcontext, f"an nn.LSTM in {DOUBLE}"),
        (nn.GRU(4, 3).double(), nullcontext, f"an nn.GRU in {DOUBLE}"),
        (nn.RNN(4, 3).double(), torch.no_grad, f"an nn.RNN in {DOUBLE}"),
    ],
)
def test_a_layer_that_onnx_has_not_is_refused_wherever_it_runs(layer: Any, context: Any, found: str) -> None:
    example = signals([3, 2]).to(layer.weight_ih_l0.dtype)
    with pytest.raises(UnsupportedLayerError, match=re.escape(f"must have layers that ONNX has; got {found}") + "$"):
        seqbatch.onnx.export(Within(layer, context).eval(), example, batch_first=True)
