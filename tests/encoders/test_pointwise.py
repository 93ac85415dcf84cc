"""Every law for the layers that treat every step by itself."""

from typing import Any

import laws
import pytest
import torch
from hypothesis import strategies as st
from strategies import for_all_lengths, sequences
from torch import nn
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode

LAYERS: list[nn.Module] = [
    nn.AlphaDropout(0.0),
    nn.CELU(),
    nn.Dropout(1.0),
    nn.ELU(inplace=True),
    nn.FeatureAlphaDropout(0.0),
    nn.GELU(),
    nn.GLU(),
    nn.Hardshrink(),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.Hardtanh(),
    nn.Identity(),
    nn.LayerNorm(4),
    nn.LayerNorm([2, 4]),
    nn.LeakyReLU(),
    nn.Linear(4, 3),
    nn.Linear(4, 3, bias=False),
    nn.LogSigmoid(),
    nn.LogSoftmax(-1),
    nn.Mish(),
    nn.PReLU(),
    nn.PReLU(2),
    nn.RMSNorm(4),
    nn.RReLU().eval(),
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.SELU(),
    nn.SiLU(),
    nn.Sigmoid(),
    nn.Softmax(2),
    nn.Softmin(1),
    nn.Softplus(),
    nn.Softshrink(),
    nn.Softsign(),
    nn.Tanh(),
    nn.Tanhshrink(),
    nn.Threshold(0.1, 20.0),
]
for _layer in LAYERS:
    _layer.double()
FEATURES = (2, 4)
# Each example has one of every layer, because these have no options to draw.
few_examples = laws.fewer_examples(12)


@few_examples
@for_all_lengths()
def test_alone(lengths: list[int]) -> None:
    for layer in LAYERS:
        laws.check_alone(layer, sequences(lengths, FEATURES))


@few_examples
@for_all_lengths(random=st.randoms(use_true_random=False))
def test_order(lengths: list[int], random: Any) -> None:
    for layer in LAYERS:
        laws.check_order(layer, sequences(lengths, FEATURES), random.sample(range(len(lengths)), len(lengths)))


@pytest.mark.slow
@few_examples
@for_all_lengths(side=st.sampled_from(["left", "right"]), batch_first=st.booleans())
def test_padding(lengths: list[int], side: Any, batch_first: bool) -> None:
    for layer in LAYERS:
        laws.check_padding(layer, sequences(lengths or [0], FEATURES), float("nan"), side, batch_first)


@few_examples
@for_all_lengths()
def test_lengths_empty_hooks_and_what_is_the_callers(lengths: list[int]) -> None:
    xs = sequences(lengths, FEATURES)
    for layer in LAYERS:
        laws.check_lengths(layer, xs)
        laws.check_empty(layer, xs or sequences([0], FEATURES))
        laws.check_called_as_itself(layer, xs)
        laws.check_unmodified(layer, xs)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_one_of_them(layer: nn.Module) -> None:
    xs = sequences([3, 0, 1], FEATURES)
    laws.check_alone(layer, xs)
    laws.check_stepwise(layer, xs)
    laws.check_called_as_itself(layer, xs)
    laws.check_unmodified(layer, xs)


def test_a_call_of_its_own_is_called() -> None:
    class Fives(nn.Linear):
        def __call__(self, values: Any) -> Any:
            return torch.full_like(super().__call__(values), 5)

    (output,) = encode(Fives(4, 3), sequences([3], (4,), torch.float32))
    assert_close(output, torch.full((3, 3), 5.0))


def test_memory() -> None:
    laws.check_memory(nn.Linear(8, 8), 8, times=3)


@for_all_lengths(dtype=st.sampled_from([torch.int32, torch.int64]))
def test_embedding(lengths: list[int], dtype: torch.dtype) -> None:
    layer = nn.Embedding(9, 4, padding_idx=0)
    tokens = sequences(lengths, (), dtype)
    laws.check_alone(layer, tokens)
    laws.check_stepwise(layer, tokens)
    laws.check_unmodified(layer, tokens)
    assert [output.shape for output in encode(layer, tokens)] == [(length, 4) for length in lengths]


def test_embedding_of_none_keeps_features() -> None:
    batch = SequenceBatch(torch.zeros(0, dtype=torch.int64), [])
    assert encode(nn.Embedding(9, 4), batch).feature_shape == (4,)


def test_autocast_makes_up_for_the_dtype() -> None:
    with torch.autocast("cpu"):
        assert encode(nn.Linear(4, 2), torch.zeros(3, 4, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_spectral_norm_takes_one_step_of_its_iteration_a_call() -> None:
    torch.manual_seed(0)
    layer, alone = (nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)) for _ in range(2))
    alone.load_state_dict(layer.state_dict())
    x = torch.randn(5, 4)
    assert_close(encode(layer, [x])[0], alone(x))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # that RMSNorm will be slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.LayerNorm([2, 4]), nn.RMSNorm(4)], ids=str)
def test_norms_take_half_precision_with_whole_weights(layer: nn.Module, dtype: torch.dtype) -> None:
    xs = [x.detach() for x in sequences([3, 0, 1], FEATURES, dtype)]
    outputs = encode(layer, xs)
    assert_close(outputs, [layer(x) for x in xs])
    assert outputs[0].dtype is dtype
