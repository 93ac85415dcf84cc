"""A batch made of an empty list: layers give outputs of their own size for it, as far as they say what that is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.nn.quantized.dynamic as quantized
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import (
    SeqbatchIndexError,
    SeqbatchTypeError,
    SeqbatchValueError,
    SequenceBatch,
    encode,
    encode_with_state,
    register_encoder,
)
from seqbatch.data import encode_chunks
from seqbatch.layers import AttentionPool, Causal, LockedDropout, MeanPool, Residual, TwoWay, WordDropout

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # of torch itself, as it makes such layers
NOTHING = SequenceBatch.from_sequences([])


def transformer() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2, enable_nested_tensor=False)


# Each with the features of one step that it takes, of which it makes 4.
KNOWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "float64": (lambda: nn.Linear(5, 4, dtype=torch.float64), (5,)),
    "bfloat16": (lambda: nn.Linear(5, 4, dtype=torch.bfloat16), (5,)),
    "quantized": (lambda: quantized.Linear(5, 4), (5,)),
    "embedding": (lambda: nn.Embedding(9, 4), ()),
    "convolution": (lambda: nn.Conv1d(5, 4, 3, stride=2), (5,)),
    "layer norm": (lambda: nn.LayerNorm(4), (4,)),
    "layer norm without weights": (lambda: nn.LayerNorm(4, elementwise_affine=False), (4,)),
    "rms norm": (lambda: nn.RMSNorm(4), (4,)),
    "batch norm": (lambda: nn.BatchNorm1d(4), (4,)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4,)),
    "instance norm": (lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True), (4,)),
    "attention": (lambda: nn.MultiheadAttention(4, 2), (4,)),
    "transformer layer": (lambda: nn.TransformerEncoderLayer(4, 2, 8), (4,)),
    "transformer": (transformer, (4,)),
    "causal": (lambda: Causal(nn.MultiheadAttention(4, 2)), (4,)),
    "attention pool": (lambda: AttentionPool(4), (4,)),
    "lstm": (lambda: nn.LSTM(5, 2, bidirectional=True), (5,)),
    "cell": (lambda: nn.GRUCell(5, 4), (5,)),
    "sequential": (lambda: nn.Sequential(nn.Dropout(), nn.Linear(5, 4), nn.ReLU()), (5,)),
    "recurrent sequential": (lambda: nn.Sequential(nn.Linear(5, 3), nn.GRU(3, 4)), (5,)),
    "module list": (lambda: nn.ModuleList([nn.Linear(5, 3), nn.Linear(3, 4)]), (5,)),
    "residual": (lambda: Residual(nn.Linear(4, 4)), (4,)),
    "recurrent residual": (lambda: Residual(nn.GRU(4, 4)), (4,)),
    "two-way": (lambda: TwoWay(nn.GRU(5, 2), nn.Linear(5, 2)), (5,)),
    "two-way linear": (lambda: TwoWay(nn.Linear(5, 2), nn.Linear(5, 2)), (5,)),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", KNOWN)
def test_layers_give_their_own_features(name: str, training: bool) -> None:
    make, features = KNOWN[name]
    layer = make().train(training)
    weights = [weight for weight in layer.parameters() if weight.is_floating_point()]
    dtype = weights[0].dtype if weights else torch.float32
    some = torch.zeros(3, *features, dtype=torch.int64 if name == "embedding" else dtype)
    outputs = encode(layer, NOTHING)
    assert outputs.batch_size == 0
    assert outputs.feature_shape == encode(layer, SequenceBatch(some, [3])).feature_shape == (4,)
    assert outputs.dtype is dtype
    assert encode(layer, []) == []
    assert encode(nn.LSTM(4, 3, dtype=dtype), outputs).feature_shape == (3,)  # what comes next takes it
    assert nn.Linear(4, 2, dtype=dtype)(outputs.last()).shape == (0, 2)
    if weights:  # as for empty sequences, because distributed training waits for the gradient of every weight
        outputs.values.sum().backward()
        assert all(weight.grad is not None and not weight.grad.any() for weight in weights)


@pytest.mark.parametrize(
    "make",
    [
        nn.ReLU,
        nn.Dropout,
        nn.Flatten,
        nn.GLU,
        lambda: nn.Softmax(-1),
        lambda: nn.AvgPool1d(2),
        lambda: nn.Conv2d(2, 3, 2),
        lambda: nn.BatchNorm2d(2),
        lambda: nn.ConstantPad1d(1, 0.0),
        lambda: LockedDropout(0.5),
        lambda: WordDropout(0.5, token=0),
        MeanPool,
        lambda: nn.LazyLinear(4),
        nn.LazyBatchNorm1d,
        lambda: Residual(nn.ReLU()),
        lambda: TwoWay(nn.ReLU(), nn.GRU(5, 4)),
        lambda: nn.Sequential(nn.ReLU(), MeanPool()),
    ],
)
def test_what_is_not_known_stays_so(make: Callable[[], nn.Module]) -> None:
    outputs = encode(make(), NOTHING)
    assert (outputs.batch_size, outputs.feature_shape) == (0, ())
    assert encode(nn.Linear(5, 4), outputs).feature_shape == (4,)


def test_a_lazy_layer_without_a_size_is_not_known_either() -> None:
    layer = nn.LazyBatchNorm1d(affine=False, track_running_stats=False)
    encode(layer, [torch.randn(3, 4)])
    assert encode(layer, NOTHING).feature_shape == ()


def test_an_encoder_without_attention_in_it_is_not_known() -> None:
    layer = transformer()
    layer.layers = nn.ModuleList()
    layer.norm = None  # type: ignore[assignment]  # an encoder may have none
    assert encode(layer, NOTHING).feature_shape == ()


class Own(nn.Linear):
    """A linear layer whose `forward` may take anything."""

    def forward(self, input: Tensor) -> Tensor:
        raise AssertionError


class Plugin(nn.Linear):
    """A linear layer with an encoder of its own."""


def test_layers_of_others_are_not_called() -> None:
    @register_encoder(Plugin)
    def _(layer: Plugin, batch: SequenceBatch) -> SequenceBatch:
        raise AssertionError

    assert encode(Own(5, 4), NOTHING).feature_shape == ()
    assert encode(Plugin(5, 4), NOTHING).feature_shape == ()


def test_states_and_chunks() -> None:
    model = nn.Sequential(nn.Embedding(9, 5), nn.GRU(5, 4))
    outputs, state = encode_with_state(model, NOTHING)
    assert outputs.feature_shape == (4,)
    assert state.states[1].last().shape == (0, 4)
    again, _ = encode_with_state(model, NOTHING, state.select([]))
    assert again.feature_shape == (4,)
    assert [outputs.feature_shape for outputs, _ in encode_chunks(model, [NOTHING, NOTHING])] == [(4,), (4,)]


def test_a_model_over_what_is_left_of_its_sequences() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.lstm, self.head = nn.Embedding(9, 5), nn.LSTM(5, 4), nn.Linear(4, 2)

        def forward(self, ids: SequenceBatch) -> Tensor:
            hidden = encode(self.lstm, encode(self.embedding, ids))
            scores: Tensor = self.head(hidden.last())
            return scores

    model = Tagger()
    for ids in ([torch.tensor([1, 2, 3])], []):
        batch = SequenceBatch.from_sequences(ids)
        assert model(SequenceBatch.from_sequences([x[:-1] for x in batch])).shape == (len(ids), 2)


JOINED: list[tuple[list[Any], tuple[int, ...]]] = [
    ([NOTHING, SequenceBatch(torch.ones(3, 5), [2, 1])], (2, 1)),
    ([SequenceBatch(torch.ones(3, 5), [2, 1]), NOTHING], (2, 1)),
    ([NOTHING, SequenceBatch(torch.tensor([1, 2]), [2]), NOTHING, SequenceBatch(torch.tensor([1]), [1])], (2, 1)),
    ([NOTHING, SequenceBatch(torch.ones(0, 5), [])], ()),
    ([NOTHING, NOTHING.to("meta"), SequenceBatch(torch.ones(1, 2), [1])], (1,)),
]


@pytest.mark.parametrize(("parts", "lengths"), JOINED)
def test_concat_takes_features_from_the_parts_that_have_them(parts: list[Any], lengths: tuple[int, ...]) -> None:
    known = [part for part in parts if part.feature_shape or part.batch_size]
    joined = SequenceBatch.concat(parts)
    assert joined.lengths == lengths
    assert_close(joined.values, torch.cat([part.values for part in known]))


def test_concat_of_nothing() -> None:
    assert SequenceBatch.concat([NOTHING, NOTHING]).feature_shape == ()


@pytest.mark.parametrize(
    "function",
    [
        nn.Linear(5, 4),
        lambda values: values[:, 0],
        lambda values: values.view(len(values), 2, -1),
        lambda values: values.sum(-1),
        lambda values: values.sum(1, keepdim=True),
        lambda values: values.sum(-1, keepdim=True).expand(-1, 2),
        lambda values: torch.cat([values, values.mean(-1, keepdim=True)], -1),
        lambda values: values.unbind(1)[0],
    ],
)
def test_map_of_a_function_of_features(function: Callable[[Tensor], Tensor]) -> None:
    outputs = NOTHING.map(function)
    assert (outputs.batch_size, outputs.feature_shape) == (0, ())
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        SequenceBatch(torch.ones(1), [1]).map(function)


@pytest.mark.parametrize(
    "raised",
    [
        ValueError("a rule of the user"),
        SeqbatchValueError("a rule of the user"),
        SeqbatchIndexError("a rule of the user"),
        NotImplementedError("not yet"),
        KeyError("a name"),
        TypeError("a type"),
    ],
    ids=repr,
)
def test_map_of_a_function_whose_error_is_not_about_features(raised: Exception) -> None:
    def refuse(values: Tensor) -> Tensor:
        raise raised

    for batch in (NOTHING, SequenceBatch(torch.ones(1), [1])):
        with pytest.raises(type(raised)) as caught:
            batch.map(refuse)
        assert caught.value is raised


def test_map_of_a_function_that_returns_no_tensor() -> None:
    with pytest.raises(SeqbatchTypeError, match=r"^`function\(values\)` must be a Tensor; got an int\.$"):
        NOTHING.map(len)  # type: ignore[arg-type]  # wrong


def test_map_of_two_batches_one_of_which_has_no_features() -> None:
    known = SequenceBatch(torch.zeros(0, 4), [])
    for one, other in ((NOTHING, known), (known, NOTHING)):
        assert one.map(torch.mul, other).feature_shape == ()
    assert NOTHING.map(lambda values: values > 0).dtype is torch.bool


@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_hr_l0"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_do_not_reach_the_state_of_an_empty_sequence(name: str, bad: float) -> None:
    lstm = nn.LSTM(3, 4, proj_size=2)
    with torch.no_grad():
        lstm.get_parameter(name)[0, 0] = bad
    outputs, state = encode_with_state(lstm, [torch.zeros(0, 3)])
    assert outputs[0].shape == (0, 2)
    assert not state.hidden.any()
    assert not state.cell.any()
    (gradient,) = torch.autograd.grad(state.hidden.sum() + state.cell.sum(), lstm.get_parameter(name))
    assert not gradient.any()
