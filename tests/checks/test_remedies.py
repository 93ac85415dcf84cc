"""What newcomers write first and wrongly: each error ends with what to write instead.

Type checkers report many of these calls too, which is why `type: ignore` stands beside them.
"""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from seqbatch import SeqbatchError, SequenceBatch, encode, encode_with_state, scan

XS = [torch.zeros(4, 5), torch.zeros(2, 5)]
BATCH = SequenceBatch.from_sequences(XS)
PADDED = BATCH.to_padded(batch_first=True)
IDS = SequenceBatch.from_sequences([torch.tensor([1, 2, 0]), torch.tensor([3])])
SCORES = SequenceBatch(torch.zeros(4, 6), IDS.structure)
RUN = "To run a layer call encode(layer, batch). For one sequence at a time call map_sequences."
ENCODER = nn.TransformerEncoderLayer(5, 1, 4)
LSTM, CELL, CONV = nn.LSTM(5, 3), nn.LSTMCell(5, 3), nn.Conv1d(5, 3, 3)
FROM_PADDED = "For a padded Tensor call SequenceBatch.from_padded."
FROM_SEQUENCES = "For a list of sequences call SequenceBatch.from_sequences."
STACK = "If its Tensors are steps, join them by torch.stack."
ENCODE = "Call encode(layer, batch) for a layer, batch.map(function) for a function that treats every step by itself."
VALUES = "Pass batch.values, which holds all steps without padding."
CALL_ENCODE = "Call encode(layer, sequences), where a list holds several sequences."
EMBEDDING = "Convert token ids to features by an nn.Embedding first."
CELLS = "For a cell of PyTorch call encode_with_state(cell, sequences, state)."
SHAPE = "A sequence has shape (steps, *features)."
CASES: dict[str, tuple[Callable[[], object], str]] = {
    "padded as values": (
        lambda: SequenceBatch(PADDED, [4, 2]),
        f"`lengths` must add up to 2, the steps of `values`; got 6. {FROM_PADDED}",
    ),
    "padded as values, time first": (
        lambda: SequenceBatch(PADDED.transpose(0, 1), [4, 2]),
        f"`lengths` must add up to 4, the steps of `values`; got 6. {FROM_PADDED}",
    ),
    "wrong sum": (
        lambda: SequenceBatch(BATCH.values, [4, 3]),
        "`lengths` must add up to 6, the steps of `values`; got 7.",
    ),
    "list as values": (
        lambda: SequenceBatch(XS, [4, 2]),  # type: ignore[call-overload]
        f"`values` must be a Tensor; got a list. {FROM_SEQUENCES}",
    ),
    "list of lists": (
        lambda: encode(LSTM, [XS, XS]),  # type: ignore[type-var]
        f"`sequences[0]` must be a Tensor; got a list. {STACK}",
    ),
    "list of lists of numbers": (
        lambda: encode(nn.Embedding(5, 3), [[1, 2], [3]]),  # type: ignore[type-var]
        "`sequences[0]` must be a Tensor; got a list. Make it one by torch.as_tensor.",
    ),
    "layer in map": (
        lambda: BATCH.map(LSTM),
        f"`function` must treat every step by itself; got LSTM(5, 3). {RUN}",
    ),
    "cell in map": (
        lambda: BATCH.map(CELL),
        "`function(values)` must be a Tensor; got a tuple. To run a layer call encode(layer, batch).",
    ),
    "layer that holds attention in map": (
        lambda: BATCH.map(ENCODER),
        f"`function` must treat every step by itself; got TransformerEncoderLayer(...), which holds "
        f"MultiheadAttention(...). {RUN}",
    ),
    "generator": (
        lambda: encode(LSTM, (x for x in XS)),  # type: ignore[call-overload]
        "`sequences` must be a list or tuple of Tensors, a Tensor, a SequenceBatch, a PackedSequence or a nested "
        "Tensor; got a generator. Pass list(sequences).",
    ),
    "sequences before the layer": (
        lambda: encode(XS, LSTM),  # type: ignore[call-overload]
        "`layer` must be an nn.Module; got a list. Pass the layer before the sequences.",
    ),
    "function as layer": (
        lambda: encode(torch.relu, XS),  # type: ignore[call-overload]
        "`layer` must be an nn.Module; got a builtin_function_or_method. For a function that treats every step by "
        "itself call batch.map(function).",
    ),
    "sequences one by one": (
        lambda: encode(LSTM, *XS),
        f"`layer` must attend to memory; got a torch.nn.modules.rnn.LSTM, which takes none. {CALL_ENCODE} "
        "To start from a state call encode_with_state(layer, sequences, state).",
    ),
    "batch first of one": (
        lambda: encode(LSTM, [x[None] for x in XS]),
        f"`sequences[1]` must have features (4, 5), as sequences[0]; got (2, 5). {SHAPE}",
    ),
    "channels first": (
        lambda: encode(CONV, [x.T for x in XS]),
        f"`sequences[1]` must have features (4,), as sequences[0]; got (2,). {SHAPE}",
    ),
    "channels first, equal": (
        lambda: encode(CONV, [XS[0].T, XS[0].T]),
        "`sequences` must have features (5,), for Conv1d(5, 3, kernel_size=(3,), stride=(1,)); got (4,). "
        "Pass x.T for a sequence of shape (features, steps).",
    ),
    "other features": (
        lambda: encode(LSTM, [torch.zeros(2, 4)]),
        "`sequences` must have features (5,), for LSTM(5, 3); got (4,).",
    ),
    "one feature without its axis": (
        lambda: encode(nn.LSTM(1, 3), [torch.zeros(4), torch.zeros(2)]),
        "`sequences` must have features (1,), for LSTM(1, 3); got (). Pass x.unsqueeze(-1) for one feature.",
    ),
    "token ids": (
        lambda: encode(LSTM, IDS),
        f"`sequences` must have features (5,), for LSTM(5, 3); got (). {EMBEDDING}",
    ),
    "float64": (
        lambda: encode(LSTM, [x.double() for x in XS]),
        "`sequences` must have dtype torch.float32, as the weights of LSTM(5, 3); got torch.float64. "
        "Convert each by x.to(torch.float32).",
    ),
    "complex": (
        lambda: encode(LSTM, [x.to(torch.complex64) for x in XS]),
        "`sequences` must have dtype torch.float32, as the weights of LSTM(5, 3); got torch.complex64.",
    ),
    "float64 for a norm": (
        lambda: encode(nn.BatchNorm1d(5, affine=False), [x.double() for x in XS]),
        "`sequences` must have dtype torch.float32, as the weights or statistics of "
        f"{nn.BatchNorm1d(5, affine=False)}; "  # whose bias torch 2.10 does not name
        "got torch.float64. Convert each by x.to(torch.float32).",
    ),
    "cross entropy": (
        lambda: functional.cross_entropy(SCORES, IDS),  # type: ignore[arg-type]
        f"`cross_entropy` must be called with Tensors; got a seqbatch.SequenceBatch. {VALUES}",
    ),
    "negative log-likelihood": (
        lambda: nn.NLLLoss()(SCORES, IDS.values),
        f"`nll_loss` must be called with Tensors; got a seqbatch.SequenceBatch. {VALUES}",
    ),
    "shape": (
        lambda: BATCH.shape,  # type: ignore[attr-defined]
        "`shape` is an attribute of a Tensor, and a layer or function that reads it must be called with one; "
        f"got a seqbatch.SequenceBatch. {ENCODE} "
        "Its sizes are len(batch), batch.lengths and batch.feature_shape.",
    ),
    "cell in scan": (
        lambda: scan(CELL, XS, (torch.zeros(2, 3), torch.zeros(2, 3))),
        "`step(inputs, state)[1]` must have the structure of `state`; got a torch.Tensor, at time step 0. "
        f"Node type mismatch; expected <class 'tuple'>, but got <class 'torch.Tensor'>. {CELLS}",
    ),
    "GRU cell in scan": (
        lambda: scan(nn.GRUCell(5, 3), XS, torch.zeros(2, 3)),
        f"`step(inputs, state)` must be a pair (output, state); got a torch.Tensor, at time step 0. {CELLS}",
    ),
}


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=CASES.keys())
def test_the_error_says_what_to_write(call: Callable[[], object], message: str) -> None:
    with pytest.raises(SeqbatchError) as caught:
        call()
    assert str(caught.value) == message


def test_what_the_errors_say_is_right() -> None:
    assert encode(CONV, [XS[0].T.T])[0].shape == (2, 3)
    assert encode(nn.LSTM(1, 3), [x[:, 0].unsqueeze(-1) for x in XS])[1].shape == (2, 3)
    assert encode(LSTM, [x.double().to(torch.float32) for x in XS])[1].shape == (2, 3)
    assert functional.cross_entropy(SCORES.values, IDS.values).shape == ()
    assert encode_with_state(CELL, XS)[0][1].shape == (2, 3)
