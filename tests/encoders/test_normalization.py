"""Every law for norms; for nn.BatchNorm1d in training that it gives what it gives for the flat values."""

import copy
from functools import partial
from inspect import signature
from typing import Any

import laws
import pytest
import torch
from hypothesis import strategies as st
from parametrize import for_each_kind
from strategies import for_all_lengths, sequences
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode
from seqbatch.testing._memory_law import peak

FEATURES = 4


def spread(layer: Any, seed: int = 0) -> Any:
    """Set weights and kept statistics at random."""
    laws.seed(seed)
    for name, held in layer.state_dict().items():
        if "num_batches" not in name:
            nn.init.uniform_(held, 0.5, 2)
    return layer.double()


@st.composite
def norms(draw: st.DrawFn, kind: Any, training: bool | None = None) -> Any:
    taken = signature(kind).parameters  # torch 2.10 has no `bias`
    names = [name for name in ("affine", "bias", "track_running_stats") if name in taken]
    options: dict[str, Any] = {name: draw(st.booleans()) for name in names}
    layer = kind(FEATURES, eps=0.01, momentum=draw(st.sampled_from([0.1, None, 1.0])), **options)
    return spread(layer, draw(st.integers(0, 3))).train(draw(st.booleans()) if training is None else training)


def longer(lengths: list[int]) -> list[int]:
    """Leave out what nn.InstanceNorm1d refuses: sequences of one step."""
    return [2 if length == 1 else length for length in lengths]


batch_norms = st.one_of(norms(nn.BatchNorm1d), norms(nn.SyncBatchNorm))
# Those of which each sequence gets what it would get alone.
alone: dict[str, st.SearchStrategy[Any]] = {
    "BatchNorm1d": norms(nn.BatchNorm1d, training=False).filter(lambda layer: layer.track_running_stats),
    "InstanceNorm1d in training": norms(nn.InstanceNorm1d, training=True),
    "InstanceNorm1d": norms(nn.InstanceNorm1d, training=False),
    "GroupNorm": st.builds(
        lambda groups, affine: spread(nn.GroupNorm(groups, FEATURES, affine=affine)),
        st.sampled_from([1, 2]),
        st.booleans(),
    ),
}


@for_each_kind("layer", alone, fewer=2)
def test_alone(lengths: list[int], layer: Any) -> None:
    laws.check_alone(layer, sequences(longer(lengths), (FEATURES,)))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm, partial(nn.GroupNorm, 2)])
def test_every_step_is_normalized_by_itself(kind: Any) -> None:
    laws.check_stepwise(spread(kind(FEATURES)).eval(), sequences([3, 0, 1], (FEATURES,)))


@for_each_kind("layer", alone, fewer=3, random=st.randoms(use_true_random=False))
def test_order(lengths: list[int], layer: Any, random: Any) -> None:
    xs = sequences(longer(lengths), (FEATURES,))
    laws.check_order(layer, xs, random.sample(range(len(lengths)), len(lengths)))


@for_each_kind("layer", alone, fewer=3, side=st.sampled_from(["left", "right"]), batch_first=st.booleans())
def test_padding(lengths: list[int], layer: Any, side: Any, batch_first: bool) -> None:
    laws.check_padding(layer, sequences(longer(lengths) or [0], (FEATURES,)), float("nan"), side, batch_first)


@for_each_kind("layer", alone, fewer=3)
def test_lengths_empty_and_what_is_the_callers(lengths: list[int], layer: Any) -> None:
    xs = sequences(longer(lengths), (FEATURES,))
    laws.check_lengths(layer, xs)
    laws.check_empty(layer, xs or sequences([0], (FEATURES,)))
    if not (layer.training and getattr(layer, "track_running_stats", False)):
        laws.check_unmodified(layer, xs)


@for_each_kind("layer", {name: alone[name] for name in ("BatchNorm1d", "GroupNorm")}, fewer=3)
def test_hooks(lengths: list[int], layer: Any) -> None:
    laws.check_called_as_itself(layer, sequences(longer(lengths), (FEATURES,)))


@for_all_lengths(layer=batch_norms, features=st.sampled_from([(FEATURES,), (FEATURES, 2)]))
def test_batch_norm_is_the_layer_on_flat_values(lengths: list[int], layer: Any, features: tuple[int, ...]) -> None:
    xs = sequences(longer(lengths), features)
    plain = copy.deepcopy(layer)
    outputs = encode(layer, xs)
    wanted = plain(torch.cat([torch.zeros(0, *features, dtype=torch.float64), *xs]))
    if not xs:
        return
    assert_close(torch.cat(outputs), wanted)
    assert [len(output) for output in outputs] == [len(x) for x in xs]
    assert_close(dict(layer.state_dict()), dict(plain.state_dict()))
    weights = torch.arange(wanted.numel()).cos().view_as(wanted)
    if wanted.requires_grad:
        found, expected = (
            torch.autograd.grad((weights * one).sum(), [*xs, *held.parameters()], allow_unused=True)
            for one, held in ((torch.cat(outputs), layer), (wanted, plain))
        )
        assert_close(found, expected)


@laws.fewer_examples(3)
@for_all_lengths(layer=norms(nn.InstanceNorm1d, training=True).filter(lambda layer: layer.track_running_stats))
def test_instance_norm_keeps_the_mean_statistics_of_sequences(lengths: list[int], layer: Any) -> None:
    xs = [x.detach() for x in sequences(longer(lengths), (FEATURES,)) if len(x)]
    mean, variance = layer.running_mean.clone(), layer.running_var.clone()
    share = layer.momentum or 0
    encode(layer, xs)
    if xs:
        mean += share * (torch.stack([x.mean(0) for x in xs]).mean(0) - mean)
        variance += share * (torch.stack([x.var(0) for x in xs]).mean(0) - variance)
    assert_close((layer.running_mean, layer.running_var), (mean, variance))


def test_instance_norm_keeps_the_statistics_of_a_call_for_its_backward_pass() -> None:
    layer = spread(nn.InstanceNorm1d(FEATURES, track_running_stats=True))
    plain = copy.deepcopy(layer)
    (x,) = sequences([5], (FEATURES,))
    first = encode(layer.eval(), x)
    encode(layer.train(), x)
    wanted = plain.eval()(x.mT[None])
    plain.train()(x.mT[None])
    assert_close(*(torch.autograd.grad(one.square().sum(), x) for one in (first, wanted)))


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_of_equal_lengths_is_that_of_pytorch(affine: bool) -> None:
    layer = spread(nn.InstanceNorm1d(FEATURES, affine=affine, track_running_stats=True))
    plain = copy.deepcopy(layer)
    xs = sequences([5, 5, 5], (FEATURES,))
    assert_close(torch.stack(encode(layer, xs)), plain(torch.stack(xs).mT).mT)
    assert_close(dict(layer.state_dict()), dict(plain.state_dict()))
    assert not layer.running_mean.requires_grad


class Reversed(nn.InstanceNorm1d):
    """Turns the steps around, which no reduction does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).flip(-1)


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_instance_norm_that_is_called_itself() -> None:
    xs = sequences([3, 0, 5, 3, 2], (FEATURES,))
    own = spread(Reversed(FEATURES, affine=True))
    hooked, watched = (spread(nn.InstanceNorm1d(FEATURES, affine=True)) for _ in range(2))
    shapes: list[tuple[int, ...]] = []
    hooked.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    parametrize.register_parametrization(watched, "weight", Doubled())
    for layer in (own, hooked, watched):
        laws.check_alone(layer, xs)
        laws.check_empty(layer, xs)
    assert shapes[:3] == [(1, FEATURES, 5), (2, FEATURES, 3), (1, FEATURES, 2)]
    laws.check_called_as_itself(spread(nn.InstanceNorm1d(FEATURES)), sequences([0, 3, 3], (FEATURES,)))
    assert encode(hooked, [xs[1]])[0].shape == (0, FEATURES)


def test_instance_norm_with_hooks_may_keep_statistics_of_one_length() -> None:
    layer, plain = (spread(nn.InstanceNorm1d(FEATURES, track_running_stats=True)) for _ in range(2))
    layer.register_forward_hook(lambda module, args, output: None)
    xs = sequences([3, 0, 3], (FEATURES,))
    assert_close(encode(layer, xs), encode(plain, xs))
    assert_close(dict(layer.state_dict()), dict(plain.state_dict()))
    ragged = sequences([3, 2], (FEATURES,))
    assert_close(encode(layer.eval(), ragged), encode(plain.eval(), ragged))


def test_group_norm_of_steps_with_several_features() -> None:
    laws.check_alone(spread(nn.GroupNorm(2, FEATURES)), sequences([3, 0, 1, 5], (FEATURES, 3, 2)))
    laws.check_alone(spread(nn.GroupNorm(FEATURES, FEATURES)), sequences([3, 0, 2], (FEATURES, 2)))


def test_a_neighbour_reaches_nothing() -> None:
    xs = sequences([3, 2, 4], (FEATURES,))
    with torch.no_grad():
        xs[1][0] = float("nan")
    for layer in (nn.InstanceNorm1d(FEATURES), nn.GroupNorm(2, FEATURES), nn.BatchNorm1d(FEATURES).eval()):
        outputs = encode(layer.double(), xs)
        gradients = torch.autograd.grad(torch.cat(outputs).sum(), [xs[0], xs[2]])
        assert all(one.isfinite().all() for one in (outputs[0], outputs[2], *gradients))


def test_no_steps_in_training() -> None:
    for kind in (nn.BatchNorm1d, nn.InstanceNorm1d):
        layer: Any = kind(FEATURES, affine=True, track_running_stats=True)
        batch = SequenceBatch(torch.zeros(0, FEATURES), [0, 0])
        assert encode(layer, batch).values.shape == (0, FEATURES)
        assert layer.running_mean.tolist() == [0] * FEATURES
        assert layer.running_var.tolist() == [1] * FEATURES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_half_precision(dtype: torch.dtype, whole: bool, training: bool) -> None:
    xs = [x.detach() for x in sequences([3, 0, 2], (FEATURES,), dtype)]
    for layer in (
        nn.BatchNorm1d(FEATURES),
        nn.GroupNorm(2, FEATURES),
        nn.InstanceNorm1d(FEATURES, affine=True, track_running_stats=True),
    ):
        layer.to(torch.float32 if whole else dtype).train(training)
        plain = copy.deepcopy(layer)
        outputs = encode(layer, xs)
        if isinstance(layer, nn.InstanceNorm1d):
            # PyTorch rounds on the way, and this only at the end.
            wanted = [plain.double()(x.double().T).T.to(dtype) for x in (xs[0], xs[2])]
            assert_close([outputs[0], outputs[2]], wanted)
        else:
            assert_close(torch.cat(outputs), plain(torch.cat(xs)))


def test_memory() -> None:
    laws.check_memory(nn.BatchNorm1d(8), 8, times=6)
    laws.check_memory(nn.GroupNorm(2, 8), 8, times=6)
    kept = nn.InstanceNorm1d(8, affine=True, track_running_stats=True)
    laws.check_memory(kept.eval(), 8, times=6)


def test_memory_of_instance_norm() -> None:
    layer = nn.InstanceNorm1d(8, affine=True)
    batch = SequenceBatch(torch.randn(2 * 511 + 512, 8), [2] * 511 + [512])
    assert peak(lambda: encode(layer, batch).values.sum().backward()) <= 15 * batch.values.nbytes


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm, nn.LazyBatchNorm1d])
@pytest.mark.parametrize("momentum", [None, 0.1])
def test_a_batch_without_sequences_is_not_counted(kind: Any, momentum: float | None) -> None:
    layer = kind(*[FEATURES] * (kind is not nn.LazyBatchNorm1d), momentum=momentum)
    plain = nn.BatchNorm1d(FEATURES, momentum=momentum)
    for n in (5, 3):
        xs = torch.randn(n, FEATURES)
        assert encode(layer, []) == []
        assert encode(layer, SequenceBatch(xs[:0], [])).feature_shape == (FEATURES,)
        plain(xs)
        encode(layer, [xs[:2], xs[:0], xs[2:]])
    assert_close(layer.state_dict(), plain.state_dict())
