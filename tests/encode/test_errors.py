"""What encode and encode_with_state refuse, before any layer runs, for equal and for ragged lengths alike."""

from collections.abc import Callable
from typing import Any

import laws
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from seqbatch import (
    ContainerState,
    LSTMState,
    RNNState,
    SeqbatchTypeError,
    SeqbatchValueError,
    SequenceBatch,
    UnsupportedLayerError,
    encode,
    encode_with_state,
)

XS = [torch.zeros(2, 3), torch.zeros(2, 3)]
# The messages of what neither call takes, whatever the layer.
NO_KIND = r"`sequences` must be a list or tuple of Tensors, a Tensor, a SequenceBatch, a PackedSequence or a nested Ten"


@pytest.mark.parametrize("call", [encode, encode_with_state])
@pytest.mark.parametrize(
    ("layer", "given", "kind", "message"),
    [
        (3, XS, SeqbatchTypeError, r"`layer` must be an nn\.Module; got an int\."),
        (torch.relu, XS, SeqbatchTypeError, r"`layer` must be an nn\.Module; got a builtin_function_or_method\."),
        (nn.LSTM, XS, SeqbatchTypeError, r"`layer` must be an nn\.Module; got a type\. Pass a layer, not its class\."),
        (
            nn.Bilinear(3, 3, 3),
            XS,
            UnsupportedLayerError,
            r"`layer` must .*; got a torch\.nn\.modules\.linear\.Bil",
        ),
        (nn.LSTM(3, 2), (x for x in XS), SeqbatchTypeError, NO_KIND + r"sor; got a generator\."),
        (nn.LSTM(3, 2), np.zeros((2, 3)), SeqbatchTypeError, NO_KIND + r"sor; got a numpy\.ndarray\."),
        (nn.LSTM(3, 2), {"xs": XS[0]}, SeqbatchTypeError, NO_KIND + r"sor; got a dict\."),
        (nn.LSTM(3, 2), "xs", SeqbatchTypeError, NO_KIND + r"sor; got a str\."),
        (nn.LSTM(3, 2), None, SeqbatchTypeError, NO_KIND + r"sor; got None\."),
        (nn.LSTM(3, 2), [XS[0], [1.0]], SeqbatchTypeError, r"`sequences\[1\]` must be a Tensor; got a list\."),
        (nn.LSTM(3, 2), [np.zeros((2, 3))], SeqbatchTypeError, r"`sequences\[0\]` must be a Tensor; got a numpy\.ndar"),
        (nn.LSTM(3, 2), [XS], SeqbatchTypeError, r"`sequences\[0\]` must be a Tensor; got a list\."),
        (
            nn.LSTM(3, 2),
            torch.tensor(1.0),
            SeqbatchValueError,
            r"`sequences` must have shape \(steps, \*features\); g",
        ),
        (
            nn.LSTM(3, 2),
            XS[0].to_sparse(),
            SeqbatchTypeError,
            r"`sequences` must be a dense Tensor; got layout",
        ),
    ],
)
def test_no_layer_or_no_sequences(
    call: Callable[..., Any], layer: Any, given: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        call(layer, given)


@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4)), nn.Dropout()])
def test_a_layer_that_keeps_no_state(layer: nn.Module) -> None:
    with pytest.raises(UnsupportedLayerError, match=r"`layer` must keep a state; got .*, which keeps none\. Call"):
        encode_with_state(layer, XS)


# On CPU PyTorch takes other kernels for equal lengths than for ragged ones; both must refuse before any of them runs.
EQUAL, RAGGED = [2, 2, 2], [1, 3, 2]
both_lengths = pytest.mark.parametrize("lengths", [EQUAL, RAGGED], ids=["equal", "ragged"])
RECURRENT = [nn.LSTM(3, 2), nn.GRU(3, 2, num_layers=2, bidirectional=True, batch_first=True), nn.RNN(3, 2)]


def zeros(lengths: list[int], *features: int, **options: Any) -> list[Tensor]:
    return [torch.zeros(length, *features, **options) for length in lengths]


@pytest.mark.parametrize("as_kind", [list, SequenceBatch.from_sequences, lambda xs: pack_sequence(xs, False)])
@pytest.mark.parametrize("layer", RECURRENT, ids=str)
@both_lengths
def test_wrong_sequences_for_a_recurrent_layer(
    lengths: list[int], layer: nn.Module, as_kind: Callable[[list[Tensor]], Any]
) -> None:
    name = rf"{type(layer).__name__}\(3, 2.*\)"
    for wrong, message in (
        (zeros(lengths), rf"`sequences` must have features \(3,\), for {name}; got \(\)\."),
        (zeros(lengths, 4), rf"`sequences` must have features \(3,\), for {name}; got \(4,\)\."),
        (zeros(lengths, 1), rf"`sequences` must have features \(3,\), for {name}; got \(1,\)\."),
        (
            zeros(lengths, 5, 3),
            rf"`sequences` must have features \(3,\), for {name}; got \(5, 3\)\. For a padded Tensor call Sequ",
        ),
        (
            zeros(lengths, 3, dtype=torch.float64),
            rf"`sequences` must have dtype torch\.float32, as the weights of {name}; got torch\.float64\.",
        ),
        (
            zeros(lengths, 3, dtype=torch.int64),
            rf"`sequences` must have dtype torch\.float32, as the weights of {name}; got torch\.int64\.",
        ),
    ):
        laws.check_refused(layer, as_kind(wrong), SeqbatchValueError, message)


@pytest.mark.parametrize("layer", RECURRENT, ids=str)
@both_lengths
def test_wrong_device(lengths: list[int], layer: nn.Module) -> None:
    message = r"`sequences` must be on cpu, as the weights of \w+\(3, 2.*\); got meta\."
    laws.check_refused(layer, zeros(lengths, 3, device="meta"), SeqbatchValueError, message)


@both_lengths
def test_sequences_that_differ_from_each_other(lengths: list[int]) -> None:
    xs = zeros(lengths, 3)
    for wrong, message in (
        (torch.zeros(2, 4), r"`sequences\[3\]` must have features \(3,\), as sequences\[0\]; got \(4,\)\."),
        (torch.zeros(2, 3).half(), r"`sequences\[3\]` must have dtype torch\.float32, as .*; got torch\.float16\."),
        (torch.zeros(2, 3, device="meta"), r"`sequences\[3\]` must have device cpu, as sequences\[0\]; got meta\."),
        (torch.tensor(1.0), r"`sequences\[3\]` must have shape \(steps, \*features\); got a Tensor of no dimension\."),
    ):
        for layer in (*RECURRENT, nn.Linear(3, 2)):
            laws.check_refused(layer, [*xs, wrong], SeqbatchValueError, message)


LSTM, GRU = nn.LSTM(3, 4, num_layers=2, proj_size=2), nn.GRU(3, 2, bidirectional=True)


def hidden(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape, **options)


@pytest.mark.parametrize(
    ("layer", "state", "kind", "message"),
    [
        (
            LSTM,
            (hidden(2, 3, 2), hidden(2, 3, 4)),
            SeqbatchTypeError,
            r"`state` must be an LSTMState, for LSTM\(3, 4, .*\); got a tuple\. .* call LSTMState\.from_torch\(hx",
        ),
        (
            GRU,
            hidden(2, 3, 2),
            SeqbatchTypeError,
            r"`state` must be an RNNState, for GRU\(3, 2, .*\); got a torch\.Tensor\. .* call RNNState\.from_torch\(hx",
        ),
        (
            GRU,
            LSTMState(hidden(1, 2, 3, 2), hidden(1, 2, 3, 2)),
            SeqbatchTypeError,
            r"`state` must be an RNNState, .*; got a seqbatch\.LSTMState\. It is that of another type of",
        ),
        (
            LSTM,
            ContainerState((RNNState(hidden(2, 1, 3, 2)),)),
            SeqbatchTypeError,
            r"`state` must be an LSTMState, .*; got a seqbatch.*ContainerState\. Take that of the layer, state\.st",
        ),
        (
            LSTM,
            LSTMState(hidden(2, 1, 2, 2), hidden(2, 1, 2, 4)),
            SeqbatchValueError,
            r"`state\.hidden` must have shape \(2, 1, 3, 2\), for 3 sequences and LSTM\(.*; got \(2, 1, 2, 2\)\.",
        ),
        (
            LSTM,
            LSTMState(hidden(2, 1, 4, 2), hidden(2, 1, 4, 4)),
            SeqbatchValueError,
            r"`state\.hidden` must have shape \(2, 1, 3, 2\), for 3 sequences and LSTM\(.*; got \(2, 1, 4, 2\)\.",
        ),
        (
            LSTM,
            LSTMState(hidden(2, 1, 3, 2), hidden(2, 1, 3, 2)),
            SeqbatchValueError,
            r"`state\.cell` must have shape \(2, 1, 3, 4\), for 3 sequences and LSTM\(.*; got \(2, 1, 3, 2\)\.",
        ),
        (
            GRU,
            RNNState(hidden(2, 1, 3, 2)),
            SeqbatchValueError,
            r"`state\.hidden` must have shape \(1, 2, 3, 2\), for 3 sequences and GRU\(.*; got \(2, 1, 3, 2\)\.",
        ),
        (
            GRU,
            RNNState(hidden(1, 2, 3, 2, dtype=torch.float64)),
            SeqbatchValueError,
            r"`state\.hidden` must have dtype torch\.float32, for 3 sequences and GRU\(.*; got torch\.float64\.",
        ),
        (
            GRU,
            RNNState(hidden(1, 2, 3, 2, device="meta")),
            SeqbatchValueError,
            r"`state\.hidden` must have device cpu, for 3 sequences and GRU\(.*; got meta\.",
        ),
    ],
)
@both_lengths
def test_wrong_states(lengths: list[int], layer: nn.Module, state: Any, kind: Any, message: str) -> None:
    laws.check_refused(layer, zeros(lengths, 3), kind, message, state)
