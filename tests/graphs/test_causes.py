"""Hooks, pruning, old norms of weights and quantization in graphs: a right result, or an error with a remedy."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.ao.nn.quantized.dynamic as quantized
from graph_models import allow_recurrent_layers as allow_recurrent_layers
from graph_models import compiled, signals
from onnx_models import IGNORED, Layered, Session
from torch import nn
from torch._dynamo.exc import Unsupported
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

import seqbatch.onnx
from seqbatch import SeqbatchError, SequenceBatch, UnsupportedLayerError, encode

# PyTorch means to drop its quantized layers and its old norms of weights.
pytestmark = [
    IGNORED,
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:.*weight_norm.*deprecated"),
]

BATCH = signals([4, 3])
WEIGHTS = {
    "LSTM": "weight_hh_l0",
    "GRU": "weight_hh_l0",
    "Linear": "weight",
    "LayerNorm": "weight",
    "Embedding": "weight",
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: nn.LSTM(4, 3),
    "GRU": lambda: nn.GRU(4, 3, bidirectional=True),
    "Linear": lambda: nn.Linear(4, 3),
    "LayerNorm": lambda: nn.LayerNorm(4),
    "Embedding": lambda: nn.Embedding(9, 3),
}


def weight_of(layer: nn.Module) -> str:
    return WEIGHTS[type(layer).__name__]


def pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, weight_of(layer), 0.5)
    return layer


def old_weight_norm(layer: nn.Module) -> nn.Module:
    return nn.utils.weight_norm(layer, weight_of(layer))


def old_spectral_norm(layer: nn.Module) -> nn.Module:
    normed: nn.Module = nn.utils.spectral_norm(layer, weight_of(layer))
    return normed


def new_weight_norm(layer: nn.Module) -> nn.Module:
    normed: nn.Module = parametrizations.weight_norm(layer, weight_of(layer))
    return normed


def forward_hook(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, given, result: None)
    return layer


def forward_pre_hook(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, given: None)
    return layer


def backward_hook(layer: nn.Module) -> nn.Module:
    layer.register_full_backward_hook(lambda module, given, result: None)
    return layer


HOOKS = [forward_hook, forward_pre_hook, backward_hook]
OF_WEIGHTS = [pruned, old_weight_norm, old_spectral_norm]


def given_to(name: str) -> SequenceBatch:
    return SequenceBatch(torch.arange(7), [4, 3]) if name == "Embedding" else BATCH


def export(layer: nn.Module, batch: SequenceBatch) -> SequenceBatch:
    result: SequenceBatch = torch.export.export(Layered(layer), (batch,)).module()(batch)
    return result


# PyTorch says that pruning and the old norms assign a weight during the export; what it exports is right.
@pytest.mark.filterwarnings("ignore:The tensor attribute self.*layer.weight was assigned during export")
@pytest.mark.parametrize(
    ("change", "name"),
    [
        *((change, "Linear") for change in (*HOOKS, *OF_WEIGHTS, new_weight_norm)),
        # What one change does to a graph is the same for all of these layers.
        *((change, "Embedding") for change in (forward_hook, pruned, new_weight_norm)),
        *((change, "LayerNorm") for change in (forward_hook, pruned)),
    ],
)
def test_layers_that_treat_every_step_by_itself_are_right_in_graphs(change: Any, name: str, tmp_path: Path) -> None:
    layer, batch = change(LAYERS[name]()).eval(), given_to(name)
    wanted = encode(layer, batch).values
    assert_close(export(layer, batch).values, wanted)
    assert_close(
        Session(Layered(layer), batch, tmp_path / "model.onnx")(batch)[0],
        encode(layer, batch).to_padded(batch_first=True),
    )
    if change is backward_hook:
        with pytest.raises(Unsupported, match="Module-level backwards hooks require compiled autograd"):
            compiled(lambda batch: encode(layer, batch))(batch)
    else:
        assert_close(compiled(lambda batch: encode(layer, batch))(batch).values, wanted)


GRAPH = r"^`graph of torch\.compile or torch\.export` must serve all lengths, so that nothing in it may .*; got "
OUTSIDE = r" Or call it outside\.$"
# What is said of each in torch.export, with the type of the layer in it, and what is advised.
SAID: dict[Any, tuple[str, str]] = {
    pruned: ("that is pruned", r"Call (torch\.nn\.utils\.prune\.remove\(layer, name\) for each name of \[.*\])\."),
    old_weight_norm: (
        r"with torch\.nn\.utils\.weight_norm",
        r"Call (torch\.nn\.utils\.remove_weight_norm\(layer, name\) for each name of \[.*\]), or use "
        r"torch\.nn\.utils\.parametrizations\.weight_norm in its place\.",
    ),
    old_spectral_norm: (
        r"with torch\.nn\.utils\.spectral_norm",
        r"Call (torch\.nn\.utils\.remove_spectral_norm\(layer, name\) for each name of \[.*\]), or use "
        r"torch\.nn\.utils\.parametrizations\.spectral_norm in its place\.",
    ),
    **dict.fromkeys(HOOKS, ("with hooks", r"Remove each by the handle that registering it returned\.")),
}
COMPILED = (
    "seqbatch: a graph must serve all lengths, and this layer has hooks, is quantized, or has a forward of its own. "
    "Remove the hooks: those of pruning by torch.nn.utils.prune.remove; in place of torch.nn.utils.weight_norm and "
    "spectral_norm use those of torch.nn.utils.parametrizations. Quantize no layer that is compiled"
)


@pytest.mark.parametrize(("name", "within"), [("LSTM", False), ("GRU", True)], ids=["alone", "in nn.Sequential"])
@pytest.mark.parametrize("change", SAID, ids=lambda change: change.__name__)
def test_recurrent_layers_are_refused_by_their_cause_and_run_once_it_is_removed(
    change: Any, name: str, within: bool
) -> None:
    layer = change(LAYERS[name]()).eval()
    model = nn.Sequential(layer, nn.Tanh()) if within else layer
    wanted = encode(model, BATCH).values
    found, remedy = SAID[change]
    message = rf"{GRAPH}a layer of type {name} {found}\. {remedy}"
    for how in (export, lambda layer, batch: seqbatch.onnx.export(Layered(layer).eval(), batch, batch_first=True)):
        with pytest.raises(SeqbatchError, match=message + OUTSIDE) as caught:
            how(model, BATCH)
    with pytest.raises(Unsupported, match=re.escape(COMPILED)):
        compiled(lambda batch: encode(model, batch))(BATCH)
    (advised,) = re.findall(message, str(caught.value)) if change in OF_WEIGHTS else [""]
    if advised:
        eval(f"[{advised.replace('for each name of', 'for name in')}]", {"torch": torch, "layer": layer})
        assert_close(export(model, BATCH).values, wanted)
        assert_close(compiled(lambda batch: encode(model, batch))(BATCH).values, wanted)


@pytest.mark.parametrize("change", HOOKS, ids=lambda change: change.__name__)
def test_a_container_with_hooks(change: Any) -> None:
    model = change(nn.Sequential(nn.Linear(4, 3)))
    message = rf"{GRAPH}a layer of type Sequential with hooks\. {SAID[change][1]}{OUTSIDE}"
    with pytest.raises(SeqbatchError, match=message):
        export(model, BATCH)
    with pytest.raises(Unsupported, match=re.escape(COMPILED)):
        compiled(lambda batch: encode(model, batch))(BATCH)


@pytest.mark.parametrize("make", [lambda: nn.Conv1d(4, 3, 3, padding=1), lambda: nn.LSTMCell(4, 3)])
def test_of_layers_that_no_graph_holds_no_hook_is_the_cause(make: Any) -> None:
    layer = make()
    for changed in (layer, forward_hook(layer)):
        with pytest.raises(SeqbatchError, match=rf"{GRAPH}a layer of type {type(layer).__name__}\. Call it outside\.$"):
            export(changed, BATCH)


class OwnForward(nn.GRU):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx)


def test_a_forward_of_its_own() -> None:
    with pytest.raises(
        SeqbatchError, match=rf"{GRAPH}a layer of type OwnForward with a forward of its own\. Call it out"
    ):
        export(OwnForward(4, 3), BATCH)
    layer = OwnForward(4, 3)
    with pytest.raises(Unsupported, match=re.escape(COMPILED)):
        compiled(lambda batch: encode(layer, batch))(BATCH)


QUANTIZED: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: quantized.Linear(4, 3),
    "LSTM": lambda: quantized.LSTM(4, 3),
    "GRU": lambda: quantized.GRU(4, 3),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_layers(name: str) -> None:
    layer = QUANTIZED[name]().eval()
    message = (
        rf"^`model` must have layers that ONNX has; got an nn\.{name} that is quantized\. Export the model before it "
        r"is quantized, and quantize the file, as by onnxruntime\.quantization\.$"
    )
    for model in (Layered(layer), nn.Sequential(Layered(nn.Sequential(layer)))):
        with pytest.raises(UnsupportedLayerError, match=message):
            seqbatch.onnx.export(model.eval(), BATCH, batch_first=True)
    with pytest.raises(Unsupported, match=re.escape(COMPILED)):
        compiled(lambda batch: encode(layer, batch))(BATCH)
    # PyTorch looks at the modules of a model before it runs it, and fails in its own words: see docs/deployment.md.
    with pytest.raises(AttributeError, match="__obj_flatten__"):
        torch.export.export(Layered(layer).eval(), (BATCH,))
    hidden = [layer]

    class Hidden(nn.Module):
        def forward(self, batch: SequenceBatch) -> SequenceBatch:
            return encode(hidden[0], batch)

    message = rf"{GRAPH}a quantized layer of type {name}\. Export the model before it is quantized\.{OUTSIDE}"
    with pytest.raises(SeqbatchError, match=message):
        torch.export.export(Hidden(), (BATCH,))
