"""torch.func over models of every kind of layer: gradients, tangents and ensembles, against each model by itself."""

from typing import Any

import pytest
import torch
from torch import Tensor, func, nn
from torch.autograd import forward_ad
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode
from seqbatch.layers import (
    AdditiveAttention,
    AttentionPool,
    Causal,
    DotProductAttention,
    LayerNormLSTM,
    LockedDropout,
    MaxPool,
    MeanPool,
    Residual,
    TwoWay,
    WordDropout,
)

# Their types do not say that what comes back is shaped as what a function gives.
transforms: Any = func
functional_call, stack_module_state = transforms.functional_call, transforms.stack_module_state
grad, jvp, vmap = transforms.grad, transforms.jvp, transforms.vmap
Weights = dict[str, Tensor]


def transformer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(4, 2, 8, 0.0)


LAYERS: dict[str, Any] = {
    "LSTMCell": lambda: nn.LSTMCell(4, 3),
    "GRUCell": lambda: nn.GRUCell(4, 3, bias=False),
    "RNNCell": lambda: nn.RNNCell(4, 3, nonlinearity="relu"),
    "LayerNormLSTM": lambda: LayerNormLSTM(4, 3),
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
    "TransformerEncoderLayer": transformer,
    "TransformerEncoder": lambda: nn.TransformerEncoder(transformer(), 2, enable_nested_tensor=False),
    "Causal": lambda: Causal(transformer()),
    "TwoWay": lambda: TwoWay(nn.GRU(4, 2), nn.LSTM(4, 2)),
    "Residual": lambda: Residual(nn.LSTM(4, 4)),
    "Sequential": lambda: nn.Sequential(nn.Tanh(), nn.GRU(4, 3), nn.Linear(3, 2)),
    "LayerNorm": lambda: nn.LayerNorm(4),
    "RMSNorm": lambda: nn.RMSNorm(4),
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(4, affine=True),
    "Conv1d": lambda: nn.Conv1d(4, 3, 3, stride=2, padding=1),
    "AvgPool1d": lambda: nn.AvgPool1d(2),
    "Conv2d": lambda: nn.Conv2d(1, 3, (3, 2), stride=2, padding=1),
    "AvgPool2d": lambda: nn.AvgPool2d(2),
    "BatchNorm2d": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.BatchNorm2d(2)),
    "AttentionPool": lambda: AttentionPool(4),
    "MaxPool": lambda: nn.Sequential(nn.Tanh(), MaxPool()),
    "MeanPool": lambda: MeanPool(),
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), nn.Dropout1d(0.5), LockedDropout(0.5), WordDropout(0.5)),
}
# Layers that attend to memory, here to the sequences back to front.
OVER_MEMORY: dict[str, Any] = {
    "MultiheadAttention, over memory": lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True, add_zero_attn=True),
    "TransformerDecoder": lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8, 0.0), 2),
    "Causal, over memory": lambda: Causal(nn.TransformerDecoderLayer(4, 2, 8, 0.0)),
    "AdditiveAttention": lambda: AdditiveAttention(4, 4, 3),
    "DotProductAttention": lambda: DotProductAttention(4, 4),
}
LAYERS |= OVER_MEMORY
every_layer = pytest.mark.parametrize("name", LAYERS)
all_lengths = pytest.mark.parametrize("lengths", [[3, 2, 6, 4], [2, 6, 2], [4, 4]])


class Model(nn.Module):
    """A layer on what a linear one gives, so that there are weights and gradients before it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.linear, self.layer = nn.Linear(4, 4), LAYERS[name]()
        self.over_memory = name in OVER_MEMORY

    def forward(self, batch: SequenceBatch) -> Tensor:
        hidden = encode(self.linear, batch)
        outputs: Any = encode(self.layer, hidden, hidden.reverse() if self.over_memory else None)
        found: Tensor = outputs.values if isinstance(outputs, SequenceBatch) else outputs
        return found


def models_for(name: str, number: int) -> list[Model]:
    torch.manual_seed(0)
    return [Model(name).double().eval() for _ in range(number)]


def batch_of(lengths: list[int]) -> SequenceBatch:
    return SequenceBatch(torch.randn(sum(lengths), 4, dtype=torch.float64), lengths)


def detached(model: Model) -> Weights:
    return {name: weight.detach() for name, weight in model.named_parameters()}


@every_layer
@all_lengths
def test_ensembles(name: str, lengths: list[int]) -> None:
    models, batch = models_for(name, 3), batch_of(lengths)
    weights, buffers = stack_module_state(models)

    def call(weights: Weights, buffers: Weights) -> Any:
        return functional_call(models[0], (weights, buffers), (batch,))

    def loss(weights: Weights, buffers: Weights) -> Any:
        return call(weights, buffers).pow(3).sum()

    assert_close(vmap(call)(weights, buffers), torch.stack([model(batch) for model in models]))
    found = vmap(grad(loss))(weights, buffers)
    for i, model in enumerate(models):
        wanted = torch.autograd.grad(model(batch).pow(3).sum(), [*model.parameters()])
        assert_close([one[i] for one in found.values()], [*wanted])


@every_layer
@all_lengths
def test_tangents(name: str, lengths: list[int]) -> None:
    (model,), batch = models_for(name, 1), batch_of(lengths)
    weights = detached(model)
    tangents = {name: torch.randn_like(weight) for name, weight in weights.items()}

    def call(weights: Weights) -> Any:
        return functional_call(model, weights, (batch,))

    outputs, found = jvp(call, (weights,), (tangents,))
    assert_close(outputs, model(batch).detach())
    # The derivative along the tangents by gradients only, of outputs weighted at random.
    chosen = torch.randn_like(outputs)
    gradients = torch.autograd.grad((model(batch) * chosen).sum(), [*model.parameters()])
    wanted = sum((one * tangents[name]).sum() for name, one in zip(weights, gradients, strict=True))
    assert_close((found * chosen).sum(), wanted)
    with forward_ad.dual_level():
        dual = call({name: forward_ad.make_dual(weight, tangents[name]) for name, weight in weights.items()})
        assert_close(forward_ad.unpack_dual(dual).tangent, found)


@pytest.mark.parametrize("kind", [LockedDropout, WordDropout])
def test_dropout_that_differs_or_is_the_same(kind: Any) -> None:
    batch = SequenceBatch(torch.ones(60, 20), [40, 0, 20])
    several = torch.ones(3, 60, 20)
    calls = {
        "values": lambda values: encode(kind(0.5), batch.with_values(values)).values,
        "others": lambda values: encode(kind(0.5), batch).values * values,
    }
    for call in calls.values():
        for randomness in ("different", "same"):
            found = vmap(call, randomness=randomness)(several) == 0
            assert len({tuple(one.flatten().tolist()) for one in found}) == (3 if randomness == "different" else 1)
            for one in found:
                assert 0.3 < one.float().mean() < 0.7
                axis = 1 if kind is WordDropout else 0  # of a step all features, of a feature all steps of a sequence
                assert_close(one[:40], one[:40].select(axis, 0).unsqueeze(axis).expand(40, 20))
