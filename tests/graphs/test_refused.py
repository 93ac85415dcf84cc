"""What a graph cannot contain: an error with `fullgraph=True`, and otherwise a graph break."""

import re
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
import torch._functorch.config as functorch_config
from graph_models import allow_recurrent_layers as allow_recurrent_layers
from graph_models import compiled, signals, tensors, tokens
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch.autograd import forward_ad
from torch.testing import assert_close

from seqbatch import (
    SeqbatchError,
    SeqbatchValueError,
    SequenceBatch,
    UnsupportedLayerError,
    encode,
    encode_with_state,
    register_cross_attention,
    scan,
)
from seqbatch._encode import registry
from seqbatch.layers import AdditiveAttention, Causal, DotProductAttention, LayerNormLSTM, WordDropout

NUMBERS = "must serve all lengths, so that nothing in it may depend on their numbers; got "


def hooked(layer: nn.Module | None = None) -> nn.Module:
    layer = nn.GRU(4, 3) if layer is None else layer
    layer.register_forward_hook(lambda *arguments: None)
    return layer


def encoding(layer: nn.Module) -> Any:
    return lambda batch: encode(layer, batch)


PACKED = nn.utils.rnn.pack_sequence([torch.ones(4, 4), torch.ones(3, 4)])
NESTED = torch.nested.nested_tensor([torch.ones(4, 4), torch.ones(3, 4)], layout=torch.jagged)
GRU = nn.GRU(4, 3)
# What needs the numbers, and what is said of it.
NEEDS: dict[str, tuple[Any, str]] = {
    "lengths": (lambda batch: batch.values * batch.lengths[0], "lengths"),
    "max_length": (lambda batch: batch.values * batch.max_length, "max_length"),
    "an index": (lambda batch: batch[0], "lengths"),
    "a tensor as an index": (lambda batch: batch[torch.tensor([1, 0])].values, "lengths"),
    "a mask as an index": (lambda batch: batch[torch.tensor([True, False])].values, "lengths"),
    "to_sequences": (lambda batch: batch.to_sequences(), "lengths"),
    "to_packed": (lambda batch: batch.to_packed().data, "lengths"),
    "to_nested": (lambda batch: batch.to_nested().values(), "the lengths of a nested tensor"),
    "from_packed": (lambda batch: SequenceBatch.from_packed(PACKED).values, "the sizes of a PackedSequence"),
    "from_nested": (lambda batch: SequenceBatch.from_nested(NESTED).values, "the lengths of a nested tensor"),
    "encode what is packed": (lambda batch: encode(GRU, PACKED).data, "the sizes of a PackedSequence"),
    "encode what is nested": (lambda batch: encode(GRU, NESTED).values(), "the lengths of a nested tensor"),
}


# Warnings about PyTorch's own compiler, when a graph continues after a break.
@pytest.mark.filterwarnings(
    "ignore:.* should not be instantiated", "ignore:The .grad attribute of a Tensor that is not"
)
@pytest.mark.parametrize("what", NEEDS)
def test_what_needs_the_numbers_of_the_lengths(what: str) -> None:
    call, found = NEEDS[what]
    found = f"a call that needs {found}. Call it outside, or in a function that torch.compiler.disable keeps out of the"
    batch = signals([4, 3])
    with pytest.raises(Unsupported, match=re.escape(NUMBERS + found)):
        compiled(call)(batch)
    dynamo.reset()
    partly: Any = torch.compile(call, dynamic=True, backend="aot_eager")
    assert_close(tensors(partly(batch)), tensors(call(batch)))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # where a graph goes on
@pytest.mark.parametrize(
    "layer",
    [
        hooked(),
        nn.Sequential(nn.GRU(4, 3), hooked(nn.Sequential(nn.Linear(3, 3)))),
        nn.Conv1d(4, 3, 3),
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten()),
        nn.Sequential(nn.GRU(4, 4), nn.MultiheadAttention(4, 2), nn.GRU(4, 2)),
        nn.LSTMCell(4, 3),
        nn.InstanceNorm1d(4),
        LayerNormLSTM(4, 3),
        Causal(nn.TransformerEncoderLayer(4, 2, 8, 0.0)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_run_by_the_numbers_of_the_lengths_or_call_hooks(layer: nn.Module) -> None:
    batch = signals([4, 3])
    with pytest.raises(
        Unsupported, match=r"seqbatch: a graph must serve all lengths, and this layer (runs by their numbers|has hooks)"
    ):
        compiled(encoding(layer))(batch)
    dynamo.reset()
    partly: Any = torch.compile(encoding(layer), dynamic=True, backend="aot_eager")
    for lengths in ([4, 3], [3, 5, 3]):
        assert_close(partly(signals(lengths)).values, encode(layer, signals(lengths)).values)


@pytest.mark.parametrize(
    ("layer", "name"), [(nn.Conv1d(4, 3, 3), "Conv1d"), (nn.Conv2d(1, 3, 3), "Conv2d"), (nn.LSTMCell(4, 3), "LSTMCell")]
)
def test_such_a_layer_is_not_exported(layer: nn.Module, name: str) -> None:
    with pytest.raises(SeqbatchError, match=re.escape(NUMBERS + f"a layer of type {name}. Call it outside.") + "$"):
        torch.export.export(Model(layer), (signals([4, 3]),))


def add_up(inputs: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    total = total + inputs
    return total, total


def summed(batch: SequenceBatch) -> Tensor:
    outputs, final = scan(add_up, batch, batch.values.new_zeros(2, 4))
    return (outputs.values * 2).sum() + final.sum()


class Scans(nn.Module):
    def forward(self, batch: SequenceBatch) -> Tensor:
        return summed(batch)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # where a graph goes on
def test_scan() -> None:
    batch = signals([4, 3])
    said = "seqbatch: a graph must serve all lengths, and scan calls `step` as often as their numbers say"
    with pytest.raises(Unsupported, match=re.escape(said)):
        compiled(summed)(batch)
    dynamo.reset()
    partly: Any = torch.compile(summed, dynamic=True, backend="aot_eager")
    for lengths in ([4, 3], [5, 0]):
        assert_close(partly(signals(lengths)), summed(signals(lengths)))
    with pytest.raises(SeqbatchError, match=re.escape(NUMBERS + "a call of scan. Call it outside.") + "$"):
        torch.export.export(Scans(), (batch,))


def test_a_step_may_be_compiled_by_itself() -> None:
    step: Any = torch.compile(add_up, fullgraph=True, dynamic=True, backend="aot_eager")
    batch = signals([5, 3, 4])
    start = torch.zeros(3, 4)
    for found, wanted in zip(scan(step, batch, start), scan(add_up, batch, start), strict=True):
        assert_close(tensors(found), tensors(wanted))


OVER_MEMORY = [
    nn.MultiheadAttention(4, 2),
    nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8, 0.0), 1),
    Causal(nn.TransformerDecoderLayer(4, 2, 8, 0.0)),
    AdditiveAttention(4, 4, 3),
    DotProductAttention(4, 4),
]


class ModelOverMemory(nn.Module):
    """A model of one layer that attends to memory, to export."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
        return encode(self.layer, queries, memory)


@pytest.mark.parametrize("layer", OVER_MEMORY, ids=lambda layer: type(layer).__name__)
def test_layers_that_attend_to_memory(layer: nn.Module) -> None:
    model = ModelOverMemory(layer)
    said = f"{NUMBERS}a layer of type {type(layer).__name__}. Call it outside."
    with pytest.raises(SeqbatchError, match=re.escape(said) + "$"):
        torch.export.export(model, (signals([4, 3]), signals([2, 5])))
    dynamo.reset()
    with pytest.raises(Unsupported, match=r"seqbatch: a graph must serve all lengths, and this layer runs by their"):
        compiled(model)(signals([4, 3]), signals([2, 5]))
    dynamo.reset()
    partly: Any = torch.compile(model, dynamic=True, backend="aot_eager")
    for lengths, of_memory in (([4, 3], [2, 5]), ([3, 5, 3], [1, 0, 2])):
        found = partly(signals(lengths), signals(of_memory)).values
        assert_close(found, model(signals(lengths), signals(of_memory)).values)
    with pytest.raises(SeqbatchValueError, match="`memory` must have 2 sequences, as many as `sequences`; got 3"):
        partly(signals([4, 3]), signals([2, 5, 1]))


@pytest.mark.parametrize("layer", OVER_MEMORY[3:], ids=lambda layer: type(layer).__name__)
def test_weights_outside_of_a_graph(layer: Any) -> None:
    def attended(queries: SequenceBatch, memory: SequenceBatch) -> Any:
        return layer.attend(queries, memory)[1]

    with pytest.raises(Unsupported, match=r"seqbatch: a graph must serve all lengths, and this layer runs by their"):
        compiled(attended)(signals([4, 3]), signals([2, 5]))
    dynamo.reset()
    partly: Any = torch.compile(attended, dynamic=True, backend="aot_eager")
    for lengths, of_memory in (([4, 3], [2, 5]), ([3, 5, 3], [1, 0, 2])):
        found, wanted = (call(signals(lengths), signals(of_memory)) for call in (partly, attended))
        assert_close(found.values, wanted.values)
        assert found.lengths == wanted.lengths
    alone: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(alone(signals([4]).values, signals([2]).values), layer(signals([4]).values, signals([2]).values))


class PlusMean(nn.Module):
    """A layer whose encoder can be traced."""


def test_a_plug_in_that_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_cross_attentions", dict(registry._cross_attentions))

    @register_cross_attention(PlusMean)
    def _(layer: PlusMean, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
        return queries.map(lambda values: values + memory.mean()[queries.segment_ids])

    model = ModelOverMemory(PlusMean())
    run = compiled(model)
    for lengths, of_memory in (([4, 3], [2, 5]), ([3, 5, 3], [1, 4, 2])):
        batches = signals(lengths), signals(of_memory)
        assert_close(run(*batches).values, model(*batches).values)
    with pytest.raises(Unsupported, match="`memory` must have as many sequences as `sequences`"):
        run(signals([4, 3]), signals([2, 5, 1]))


def test_a_layer_without_an_encoder() -> None:
    found = "a layer of type Dropout3d, of which no encoder is known yet"
    with pytest.raises(Unsupported, match=re.escape(NUMBERS + found)):
        compiled(encoding(nn.Dropout3d()))(signals([4, 3]))


def test_what_no_graph_does_for_the_host() -> None:
    with pytest.raises(Unsupported, match=re.escape(NUMBERS + "a call that needs page-locked memory.")):
        compiled(lambda batch: batch.pin_memory())(signals([4, 3]))


def test_a_layer_that_gives_no_steps_is_named_by_its_type() -> None:
    said = "`layer` must return one step for each step of a sequence; got EmbeddingBag, which returns one vector"
    with pytest.raises(Unsupported, match=re.escape(said)):
        compiled(encoding(nn.EmbeddingBag(9, 2)))(tokens([4, 3]))


class Model(nn.Module):
    """A model of one layer, to export."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, batch: SequenceBatch) -> SequenceBatch:
        return encode(self.layer, batch)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("token", "dtype", "said"),
    [
        (None, torch.int64, "a floating or complex dtype, for WordDropout; got torch.int64. For ids pass the one"),
        (None, torch.bool, "a floating or complex dtype, for WordDropout; got torch.bool."),
        (3, torch.float32, "an integer dtype, for WordDropout; got torch.float32. For features pass no token."),
        (300, torch.uint8, "`token` must be from 0 to 255, for torch.uint8 of `sequences`; got 300."),
    ],
)
def test_word_dropout_of_another_dtype(training: bool, token: int | None, dtype: torch.dtype, said: str) -> None:
    layer, batch = WordDropout(0.5, token=token).train(training), SequenceBatch(torch.ones(5).to(dtype), [3, 2])
    with pytest.raises(Unsupported, match=re.escape(said)):
        compiled(encoding(layer))(batch)
    with pytest.raises(SeqbatchError, match=re.escape(said)):
        torch.export.export(Model(layer), (batch,))


def test_what_was_compiled_by_itself_is_not_a_layer_to_register() -> None:
    gru: Any = nn.GRU(4, 3)
    layer: Any = torch.compile(gru, backend="aot_eager")
    said = (
        "`layer` must be a layer itself, and not a wrapper of one; got a torch._dynamo.eval_frame.OptimizedModule: "
        "none is registered for it or its bases. Compile the function or the model that calls encode, and give the "
        "layer itself, layer._orig_mod."
    )
    for call in (encode, encode_with_state):
        for compiled_one in (layer, nn.Sequential(nn.Tanh(), layer)):
            with pytest.raises(UnsupportedLayerError, match=f"^{re.escape(said)}"):
                call(compiled_one, signals([4, 3]))
    assert_close(encode(layer._orig_mod, signals([4, 3])).values, encode(gru, signals([4, 3])).values)


MESSAGE = "`operator of seqbatch` must be differentiated backward only; got a transform of torch.func, or forward mode"


@pytest.mark.parametrize("transform", ["jvp", "grad", "vmap"])
def test_transforms_around_what_is_in_a_graph(transform: str) -> None:
    batch, gru = signals([4, 3]), nn.GRU(4, 3)

    def call(values: Tensor) -> Tensor:
        return encode(gru, batch.with_values(values)).values.sum()

    def transformed(values: Tensor) -> Any:
        if transform == "jvp":
            return torch.func.jvp(call, (values,), (torch.ones_like(values),))
        if transform == "grad":
            return torch.func.grad(call)(values)
        return torch.func.vmap(call)(torch.stack([values, values]))

    with pytest.raises(Unsupported, match=re.escape(MESSAGE)):
        compiled(transformed)(batch.values)


def test_the_operator_itself_loses_no_tangent() -> None:
    values, lengths = torch.randn(5, 2), torch.tensor([3, 2])
    reduce: Any = torch.ops.seqbatch.reduce

    def call(values: Tensor) -> Any:
        return reduce(values, lengths, "sum")

    with pytest.raises(SeqbatchError, match=re.escape(MESSAGE)):
        torch.func.jvp(call, (values,), (torch.ones_like(values),))
    with forward_ad.dual_level(), pytest.raises(SeqbatchError, match=re.escape(MESSAGE)):
        call(forward_ad.make_dual(values, torch.ones_like(values)))


def test_gradients_of_gradients_through_a_graph() -> None:
    gru, batch = nn.GRU(4, 3), signals([3, 2])
    values = batch.values.requires_grad_()
    with functorch_config.patch(donated_buffer=False):  # else that is what PyTorch says, and how to have it
        loss = compiled(lambda values: encode(gru, batch.with_values(values)).values.sin().sum())(values)
        (gradient,) = torch.autograd.grad(loss, values, create_graph=True)
        with pytest.raises(RuntimeError, match="does not currently support double backward"):
            torch.autograd.grad(gradient.sum(), values)
