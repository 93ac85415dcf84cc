"""encode_chunks: what it refuses, how it says so, and what it takes at its word."""

import re
from typing import Any

import pytest
import torch
import torch.ao.nn.quantized.dynamic as quantized
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils.rnn import pack_sequence
from torch.testing import assert_close

from seqbatch import (
    SeqbatchError,
    SeqbatchTypeError,
    SeqbatchValueError,
    SequenceBatch,
    UnsupportedLayerError,
    encode,
    encode_with_state,
    register_encoder,
    register_recurrent,
)
from seqbatch.data._encode_chunks import encode_chunks
from seqbatch.layers import Causal, LockedDropout, MeanPool, Residual, TwoWay, WordDropout


class Running(nn.Module):
    """Gives at each step the steps so far."""


@register_recurrent(Running)
def _(layer: Running, batch: SequenceBatch, state: Any) -> tuple[SequenceBatch, Any]:
    """Keep a state with no method at all: a list of numbers."""
    start = [0] * len(batch) if state is None else state
    parts = [torch.arange(len(x)) + 1 + n for x, n in zip(batch, start, strict=True)]
    return batch.with_values(torch.cat(parts)), [n + len(x) for x, n in zip(batch, start, strict=True)]


class Shift(nn.Linear):
    """A layer that looks at other steps, though its base does not."""


@register_encoder(Shift)
def _(layer: Shift, batch: SequenceBatch) -> SequenceBatch:
    return batch.reverse()


class Doubled(nn.Module):
    """A layer that treats every step by itself, and says so."""


@register_encoder(Doubled, stepwise=True)
def _(layer: Doubled, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(lambda values: 2 * values)


class Backward(nn.Module):
    """A layer of two directions that PyTorch does not know."""

    bidirectional: bool = True


@register_recurrent(Backward)
def _(layer: Backward, batch: SequenceBatch, state: Any) -> tuple[SequenceBatch, Any]:
    return batch.reverse(), torch.zeros(1)


def test_a_plug_in_is_taken_at_its_word() -> None:
    chunks = [[torch.zeros(2), torch.zeros(1)], [torch.zeros(0), torch.zeros(2)]]
    with torch.no_grad():
        results = [*encode_chunks(Running(), chunks)]
    assert [[part.tolist() for part in outputs] for outputs, _ in results] == [[[1, 2], [1]], [[], [2, 3]]]
    assert results[-1][1] == [2, 3]


@pytest.mark.parametrize(
    ("layer", "kind"), [(Running(), "a list"), (nn.Sequential(Running()), "a seqbatch.ContainerState")]
)
def test_a_state_without_detach_goes_without_gradients_only(layer: nn.Module, kind: str) -> None:
    results = encode_chunks(layer, [torch.zeros(2), torch.zeros(1)])
    assert_close(next(results)[0], torch.tensor([1, 2]))
    must = "must have detach, as RNNState, because gradients stop between chunks"
    with pytest.raises(SeqbatchTypeError, match=re.escape(f"`state` {must}; got {kind}. Call it under torch.no_grad.")):
        next(results)


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2)


BACKWARD = "be of one direction, because one that reads backward needs the last chunk first"
UNKNOWN = "keep a state, or be known to treat every step by itself, so that chunks make no difference"


@pytest.mark.parametrize(
    ("layer", "subject", "must", "found"),
    [
        (nn.LSTM(4, 3, bidirectional=True), "layer", BACKWARD, "LSTM(4, 3, bidirectional=True)"),
        (nn.Sequential(nn.Tanh(), nn.GRU(4, 3, bidirectional=True)), "layer[1]", BACKWARD, "GRU("),
        (nn.ModuleList([nn.GRU(4, 4), nn.GRU(4, 3, bidirectional=True)]), "layer[1]", BACKWARD, "GRU("),
        (Residual(nn.Sequential(nn.GRU(4, 2, bidirectional=True))), "layer.layer[0]", BACKWARD, "GRU("),
        (TwoWay(nn.GRU(4, 3), nn.GRU(4, 3)), "layer", BACKWARD, "TwoWay("),
        (nn.Sequential(nn.GRU(4, 4), TwoWay(nn.Tanh(), nn.Tanh())), "layer[1]", BACKWARD, "TwoWay("),
        (Backward(), "layer", BACKWARD, "Backward("),
        (nn.Sequential(nn.Conv1d(4, 4, 3), nn.GRU(4, 3)), "layer[0]", UNKNOWN, "Conv1d(4, 4, kernel_size=(3,)"),
        (nn.Sequential(nn.MaxPool1d(2), nn.GRU(4, 3)), "layer[0]", UNKNOWN, "MaxPool1d("),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.GRU(4, 3)), "layer[0]", UNKNOWN, "Conv2d("),
        (nn.Sequential(nn.GRU(4, 4), attention()), "layer[1]", UNKNOWN, "TransformerEncoderLayer("),
        (nn.Sequential(Causal(attention()), nn.GRU(4, 4)), "layer[0]", UNKNOWN, "Causal("),
        (nn.Sequential(nn.GRU(4, 4), nn.Sequential(MeanPool())), "layer[1][0]", UNKNOWN, "MeanPool("),
        (nn.Sequential(nn.InstanceNorm1d(4), nn.GRU(4, 4)), "layer[0]", UNKNOWN, "InstanceNorm1d("),
        (nn.Sequential(Shift(4, 4), nn.GRU(4, 4)), "layer[0]", UNKNOWN, "Shift("),
    ],
)
def test_what_would_differ_at_the_borders_of_chunks_is_refused(
    layer: nn.Module, subject: str, must: str, found: str
) -> None:
    with pytest.raises(UnsupportedLayerError, match=re.escape(f"`{subject}` must {must}; got {found}")):
        encode_chunks(layer, [])


def test_the_error_names_what_a_plug_in_says() -> None:
    remedy = "If every step is treated by itself, register the encoder by register_encoder(..., stepwise=True)."
    with pytest.raises(UnsupportedLayerError, match=re.escape(remedy)):
        encode_chunks(nn.Sequential(Shift(4, 4), nn.GRU(4, 4)), [])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "Linear"])
def test_what_rounds_by_the_range_of_a_chunk_is_refused(kind: str) -> None:
    layer = nn.Sequential(nn.GRU(4, 4), getattr(quantized, kind)(4, 4))
    must = "`layer[1]` must not be quantized to int8, because it rounds its input by the range of the whole input"
    with pytest.raises(UnsupportedLayerError, match=re.escape(must)):
        encode_chunks(layer, [])


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.LazyBatchNorm1d(track_running_stats=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.LazyBatchNorm2d(track_running_stats=False),
        nn.SyncBatchNorm(4, track_running_stats=False),
    ],
)
def test_a_norm_by_the_statistics_of_a_chunk_is_refused(norm: nn.Module) -> None:
    layer = nn.Sequential(nn.GRU(4, 4), norm).eval()
    with pytest.raises(
        UnsupportedLayerError, match=r"`layer\[1\]` must have running statistics, because those of a chunk"
    ):
        encode_chunks(layer, [])


def test_what_is_refused_would_differ() -> None:
    """The reason: some of the layers that are refused, run chunk by chunk, give other values than the whole."""
    x = torch.randn(8, 4)
    for layer in (nn.GRU(4, 2, bidirectional=True), nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.GRU(4, 2))):
        whole, _ = encode_with_state(layer, x)
        start, state = encode_with_state(layer, x[:4])
        end, _ = encode_with_state(layer, x[4:], state)
        assert not torch.allclose(torch.cat([start, end]), whole)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_what_takes_its_range_or_its_statistics_from_a_chunk_would_differ() -> None:
    linear: Any = quantized.Linear(4, 4)
    linear.set_weight_bias(torch.quantize_per_tensor(torch.randn(4, 4), 0.02, 0, torch.qint8), torch.zeros(4))
    x = torch.cat([torch.randn(4, 4), 100 * torch.randn(4, 4)])
    for layer in (quantized.LSTM(4, 3), quantized.GRU(4, 3)):
        whole, _ = encode_with_state(layer, x)
        start, state = encode_with_state(layer, x[:4])
        end, _ = encode_with_state(layer, x[4:], state)
        assert not torch.allclose(torch.cat([start, end]), whole)
    for stateless in (linear, nn.BatchNorm1d(4, track_running_stats=False).eval()):
        parts = [encode(stateless, part) for part in x.split(4)]
        assert not torch.allclose(torch.cat(parts), encode(stateless, x))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float16, torch.qint8])
def test_quantized_layers_that_round_no_more_than_a_step_are_run(dtype: torch.dtype) -> None:
    kinds: list[Any] = [nn.LSTMCell, nn.GRUCell, nn.RNNCell]
    if dtype is torch.float16:
        kinds += [nn.LSTM, nn.GRU]
    x = torch.cat([torch.randn(4, 4), 100 * torch.randn(4, 4)])
    for kind in kinds:
        plain = nn.Sequential(nn.Linear(4, 4), kind(4, 3))
        model = quantize_dynamic(plain, {kind, nn.Linear} if dtype is torch.float16 else {kind}, dtype=dtype)
        with torch.no_grad():
            parts = [outputs for (outputs,), _ in encode_chunks(model, ([chunk] for chunk in x.split(3)))]
            assert_close(torch.cat(parts), encode_with_state(model, [x])[0][0])


@pytest.mark.parametrize(
    "layer",
    [
        LockedDropout(0.5),
        WordDropout(0.5),
        nn.Dropout(0.5),
        nn.BatchNorm1d(4),
        nn.GroupNorm(2, 4),
        nn.Softmax(-1),
        Doubled(),
    ],
)
def test_layers_that_treat_every_step_by_itself_are_run(layer: nn.Module) -> None:
    model, x = nn.Sequential(layer, nn.GRU(4, 3)).eval(), torch.randn(7, 4)
    parts = [outputs for outputs, _ in encode_chunks(model, x.split(3))]
    assert_close(torch.cat(parts), encode_with_state(model, x)[0])


def test_a_layer_without_state_is_refused() -> None:
    must = "`layer` must keep a state; got a torch.nn.modules.linear.Linear, which keeps none. Call encode on the whole"
    with pytest.raises(UnsupportedLayerError, match=re.escape(must)):
        encode_chunks(nn.Linear(4, 3), [torch.zeros(2, 4)])


def test_what_is_not_a_layer_is_refused() -> None:
    layer: Any = nn.LSTM
    with pytest.raises(SeqbatchTypeError, match=re.escape("`layer` must be an nn.Module; got a type.")):
        encode_chunks(layer, [])


@pytest.mark.parametrize(
    ("chunks", "found"),
    [
        (torch.zeros(6, 5), "a torch.Tensor. Cut it by chunks.split(1000)."),
        (SequenceBatch(torch.zeros(6, 5), [6]), "a seqbatch.SequenceBatch. For one chunk pass [chunk]."),
        (pack_sequence([torch.zeros(6, 5)]), "a torch.nn.utils.rnn.PackedSequence. For one chunk pass [chunk]."),
        (5, "an int. For one chunk pass [chunk]."),
    ],
)
def test_chunks_are_several(chunks: Any, found: str) -> None:
    with pytest.raises(SeqbatchTypeError, match=re.escape(f"`chunks` must be an iterable of chunks; got {found}")):
        encode_chunks(nn.LSTM(5, 3), chunks)


def test_chunks_have_equally_many_sequences() -> None:
    x = torch.zeros(6, 5)
    results = encode_chunks(nn.LSTM(5, 3), [[x, x], [x[:0], x], [x]])
    assert len(next(results)[0]) == len(next(results)[0]) == 2
    must = "`chunks[2]` must be of 2 sequences, as chunks[0]; got 1. Pass an empty sequence for one that has ended."
    with pytest.raises(SeqbatchValueError, match=re.escape(must)):
        next(results)


def test_errors_tell_the_chunk() -> None:
    results = encode_chunks(nn.LSTM(5, 3), [torch.zeros(6, 5), torch.zeros(6, 4)])
    next(results)
    with pytest.raises(SeqbatchError, match=re.escape("must have features (5,), for LSTM(5, 3); got (4,)")) as caught:
        next(results)
    assert "while chunks[1] was encoded" in caught.value.__notes__
