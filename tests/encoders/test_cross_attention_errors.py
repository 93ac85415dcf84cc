"""What encode refuses with memory: sizes, dtypes, devices and batch sizes that differ, and layers that take none."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from seqbatch import (
    LSTMState,
    SeqbatchTypeError,
    SeqbatchValueError,
    SequenceBatch,
    UnsupportedLayerError,
    encode,
    encode_with_state,
    is_recurrent,
)
from seqbatch.layers import AdditiveAttention, Causal, DotProductAttention, Residual

ATTENTION, DECODER = nn.MultiheadAttention(4, 2), nn.TransformerDecoderLayer(4, 2, 8)
LAYERS = [
    ATTENTION,
    DECODER,
    nn.TransformerDecoder(DECODER, 1),
    Causal(DECODER),
    AdditiveAttention(4, 4, 3),
    DotProductAttention(4, 4),
]
each = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)


def refuse(layer: Any, queries: Any, memory: Any, kind: type[Exception], message: str) -> None:
    """Check that a call raises before any layer runs."""
    entered: list[nn.Module] = []
    handle = register_module_forward_pre_hook(lambda module, args: entered.append(module))
    try:
        with pytest.raises(kind, match=message):
            encode(layer, queries, memory)
    finally:
        handle.remove()
    assert entered == []


def zeros(lengths: list[int], *size: int, **options: Any) -> list[Tensor]:
    return [torch.zeros(n, *size, **options) for n in lengths]


@each
@pytest.mark.parametrize("lengths", [[2, 2], [3, 0, 1]], ids=["equal", "ragged"])
@pytest.mark.parametrize("side", ["sequences", "memory"])
def test_wrong_features_dtype_and_device(layer: nn.Module, lengths: list[int], side: str) -> None:
    name = type(layer.layer if isinstance(layer, Causal) else layer).__name__
    right = zeros(lengths, 4)
    for options, must in (
        ({"size": (5,)}, rf"have features \(4,\), for {name}\(.*\); got \(5,\)\."),
        ({"size": ()}, rf"have features \(4,\), for {name}\(.*\); got \(\)\."),
        ({"size": (2, 4)}, r"have features \(4,\), .*; got \(2, 4\)\. For a padded Tensor call SequenceBatch\.from_"),
        ({"dtype": torch.float64}, rf"have dtype torch.float32, as the weights of {name}\(.*\); got torch.float64\."),
        ({"device": "meta"}, rf"be on cpu, as the weights of {name}\(.*\); got meta\."),
    ):
        given: Any = {"size": (4,), **options}
        wrong = zeros(lengths, *given.pop("size"), **given)
        queries, memory = (wrong, right) if side == "sequences" else (right, wrong)
        refuse(layer, queries, memory, SeqbatchValueError, f"^`{side}` must {must}")


@each
def test_other_batch_sizes(layer: nn.Module) -> None:
    x = zeros([3, 2], 4)
    message = r"^`memory` must have 2 sequences, as many as `sequences`; got {}\."
    for memory, found in ((x[:1], 1), ([], 0), ([*x, *x], 4), (SequenceBatch(torch.zeros(0, 4), []), 0)):
        refuse(layer, x, memory, SeqbatchValueError, message.format(found))
    refuse(layer, x[:1], x, SeqbatchValueError, r"^`memory` must have 1 sequence, as many as `sequences`; got 2\.")
    refuse(layer, [], x, SeqbatchValueError, r"^`memory` must have 0 sequences, as many as `sequences`; got 2\.")


@each
def test_one_tensor_and_several(layer: nn.Module) -> None:
    x = torch.zeros(3, 4)
    batch = SequenceBatch.from_sequences([x])
    for memory, found in (
        ([x], "a list"),
        ((x,), "a tuple"),
        (batch, "a seqbatch.SequenceBatch"),
        (batch.to_nested(), r"a torch.*NestedTensor"),
    ):
        refuse(layer, x, memory, SeqbatchTypeError, rf"^`memory` must be one Tensor, as `sequences`; got {found}\.")
    for queries in ([x], (x,), batch, batch.to_packed(), batch.to_nested()):
        message = r"^`memory` must be several sequences, as `sequences`; got a torch\.Tensor\. Write \[memory\] for one"
        refuse(layer, queries, x, SeqbatchTypeError, message)
    refuse(layer, x, torch.zeros(()), SeqbatchValueError, r"^`memory` must have shape \(steps, \*features\); got a")


@each
def test_memory_of_other_types(layer: nn.Module) -> None:
    x = zeros([3, 2], 4)
    must = r"^`memory` must be a list or tuple of Tensors, a SequenceBatch, a PackedSequence or a nested Tensor, as `se"
    for memory in ({1: x}, 3, "text", iter(x)):
        refuse(layer, x, memory, SeqbatchTypeError, must)
    refuse(layer, x, [x[0], 3], SeqbatchTypeError, r"^`memory\[1\]` must be a Tensor; got an int\.")
    refuse(
        layer,
        x,
        [x[0], torch.zeros(2, 3)],
        SeqbatchValueError,
        r"^`memory\[1\]` must have features \(4,\), as memory\[0\];",
    )


@pytest.mark.parametrize("layer", [*LAYERS[1:], nn.Sequential(DECODER)], ids=lambda layer: type(layer).__name__)
def test_memory_is_missing(layer: nn.Module) -> None:
    x = zeros([3, 2], 4)
    message = r"^`memory` must be given, for .*; got None\. Call encode\(layer, queries, memory\)\."
    for given in (x, x[0], SequenceBatch.from_sequences(x), []):
        with pytest.raises(SeqbatchTypeError, match=message):
            encode(layer, given)
    assert not is_recurrent(layer)


def test_a_decoder_keeps_no_state() -> None:
    for layer in (DECODER, DotProductAttention(4, 4)):
        with pytest.raises(SeqbatchTypeError, match=r"^`memory` must be given, for "):
            encode_with_state(layer, zeros([3], 4))


FROM_A_STATE = r"To start from a state call encode_with_state\(layer, sequences, state\)\.$"


@pytest.mark.parametrize(
    ("layer", "remedy"),
    [
        (nn.LSTM(4, 4), rf"Call encode\(layer, sequences\), where a list holds several sequences\. {FROM_A_STATE}"),
        (nn.Linear(4, 4), r"Call encode\(layer, sequences\), where a list holds several sequences\.$"),
        (nn.LSTMCell(4, 4), rf"Call encode\(layer, sequences\), where a list holds several sequences\. {FROM_A_STATE}"),
        (nn.Sequential(nn.GRU(4, 4)), rf"Call encode for each layer in it, .* attend to it\. {FROM_A_STATE}"),
        (nn.Embedding(4, 4), r"Call encode\(layer, sequences\), where a list holds several sequences\.$"),
        (nn.TransformerEncoderLayer(4, 2), "Call encode for each layer in it, with memory for those that attend to it"),
        (nn.Sequential(DECODER), "Call encode for each layer in it, with memory for those that attend to it"),
        (nn.ModuleList([DECODER]), "Call encode for each layer in it, with memory for those that attend to it"),
        (Residual(nn.Linear(4, 4)), "Call encode for each layer in it, with memory for those that attend to it"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_layer_that_takes_no_memory(layer: nn.Module, remedy: str) -> None:
    x = zeros([3, 2], 4)
    message = rf"^`layer` must attend to memory; got a .*{type(layer).__name__}, which takes none\. {remedy}"
    for given in (x, x[0]):
        refuse(layer, given, given, UnsupportedLayerError, message)
    refuse(layer, x, LSTMState(*[torch.zeros(1, 1, 2, 4)] * 2), UnsupportedLayerError, message)


def test_causal_of_a_layer_that_is_not_a_decoder() -> None:
    x = zeros([3, 2], 4)
    must = r"^`layer` must attend to memory; got a seqbatch\..*\.Causal of a torch\.nn\..*, which takes none\. "
    remedy = "A causal mask is for steps of one sequence. Wrap a decoder"
    attention = Causal(ATTENTION)
    ending = rf"{remedy}, or call encode\(layer\.layer, queries, memory\) for attention to all of memory\."
    refuse(attention, x, x, UnsupportedLayerError, must + ending)
    with pytest.raises(UnsupportedLayerError, match=must + ending):
        attention(x[0], x[0])
    refuse(Causal(nn.TransformerEncoderLayer(4, 2)), x, x, UnsupportedLayerError, rf"{must}{remedy}\.")
    with pytest.raises(SeqbatchTypeError, match=r"^`memory` must be given, for Causal\(\.\.\.\); got None\."):
        Causal(DECODER)(x[0])


def test_keys_and_values_of_other_sizes() -> None:
    x, memory = zeros([3, 2], 4), zeros([3, 2], 3)
    message = r"^`layer` must have equal kdim and vdim, because memory is both key and value; got kdim 3 and vdim 5\."
    attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
    refuse(attention, x, memory, SeqbatchValueError, message)
    decoder = nn.TransformerDecoderLayer(4, 2, 8)
    decoder.self_attn = nn.MultiheadAttention(4, 2, kdim=3, vdim=3)
    refuse(decoder, x, x, SeqbatchValueError, r"^`layer` must have kdim and vdim 4, as its embed_dim, because each seq")
    decoder = nn.TransformerDecoderLayer(4, 2, 8)
    decoder.multihead_attn = nn.MultiheadAttention(4, 2, kdim=3, vdim=3)
    assert [y.shape for y in encode(decoder, x, memory)] == [(3, 4), (2, 4)]
    refuse(decoder, x, x, SeqbatchValueError, r"^`memory` must have features \(3,\), for Trans")


class Own(nn.TransformerDecoderLayer):
    """Takes what its base does not."""

    def forward(self, tgt: Tensor, memory: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(tgt[..., :4], memory[..., :4], *args, **kwargs)


def test_a_forward_of_its_own_takes_what_it_takes() -> None:
    layer = Own(4, 2, 8, dropout=0.0)
    x, memory = torch.randn(3, 6), torch.randn(2, 5)
    torch.testing.assert_close(encode(layer, x, memory), layer(x, memory))
    layer.self_attn = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(UnsupportedLayerError, match=r"Identity\(\) in it does not say whether it is batch_first"):
        encode(layer, x, memory)


def test_a_hook_before_may_change_the_dtype() -> None:
    layer = nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0)
    layer.register_forward_pre_hook(lambda module, args: tuple(one.float() for one in args))
    x, memory = torch.randn(3, 4), torch.randn(2, 4)
    torch.testing.assert_close(encode(layer, x.double(), memory.double()), layer(x, memory))


def test_an_error_names_both_batches() -> None:
    with pytest.raises(SeqbatchValueError) as caught:
        encode(ATTENTION, zeros([3, 2], 4), zeros([1, 1], 5))
    batches = "SequenceBatch(2 sequences of 2 to 3 steps, features (4,), torch.float32, cpu)"
    other = "SequenceBatch(2 sequences of 1 step, features (5,), torch.float32, cpu)"
    assert caught.value.__notes__ == [f"while MultiheadAttention(...) ran on {batches} and {other}"]
