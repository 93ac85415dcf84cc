"""LockedDropout and WordDropout: what masks have in common and what not, seeds, gradients and errors."""

from typing import Any

import laws
import pytest
import torch
from hypothesis import strategies as st
from parametrize import for_each_kind
from strategies import features, for_all_lengths, make, sequences
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch, encode
from seqbatch.layers import LockedDropout, WordDropout

# Dropout of which nothing is left to chance.
certain: dict[str, st.SearchStrategy[nn.Module]] = {
    f"{kind.__name__} of {p}": st.builds(kind, st.just(p)).map(lambda layer: layer.eval() if layer.p == 0.5 else layer)
    for kind in (LockedDropout, WordDropout)
    for p in (0.0, 0.5, 1.0)
}


@for_each_kind(
    "layer",
    certain,
    fewer=2,
    features=features,
    dtype=st.sampled_from([torch.float16, torch.float64, torch.complex128]),
)
def test_alone(lengths: list[int], layer: nn.Module, features: tuple[int, ...], dtype: torch.dtype) -> None:
    outputs = encode(layer, sequences(lengths, features, dtype))
    wanted = [layer(x) for x in sequences(lengths, features, dtype)]
    assert_close(outputs, wanted)


@for_each_kind("layer", certain, fewer=3)
def test_padding(lengths: list[int], layer: nn.Module) -> None:
    laws.check_padding(layer, sequences(lengths or [0], (2, 3)), float("nan"), "left", True)


@for_each_kind("layer", certain, fewer=3, random=st.randoms(use_true_random=False))
def test_laws(lengths: list[int], layer: nn.Module, random: Any) -> None:
    xs = sequences(lengths or [0], (2, 3))
    laws.check_alone(layer, xs)
    laws.check_order(layer, xs, random.sample(range(len(xs)), len(xs)))
    laws.check_lengths(layer, xs)
    laws.check_empty(layer, xs)
    laws.check_called_as_itself(layer, xs)
    laws.check_unmodified(layer, xs)


@pytest.mark.parametrize("kind", [LockedDropout, WordDropout])
def test_p_of_0_and_1_and_evaluation(kind: Any) -> None:
    xs = sequences([3, 0, 2], (4,), torch.float32)
    batch = SequenceBatch.from_sequences(xs)
    assert encode(kind(0.0), batch).values is batch.values
    assert encode(kind(0.5).eval(), batch).values is batch.values
    assert not encode(kind(1.0), batch).values.any()
    assert kind(0.5).eval()(xs[0]) is xs[0]
    assert not kind(1.0)(xs[0]).any()


@laws.fewer_examples(3)
@for_all_lengths(p=st.floats(0.2, 0.8), seed=st.integers(0, 9))
def test_a_locked_mask_is_that_of_each_sequence(lengths: list[int], p: float, seed: int) -> None:
    laws.seed(seed)
    xs = [torch.ones(length, 400, dtype=torch.float64) for length in lengths]  # so many that no two masks are alike
    outputs = encode(LockedDropout(p), xs)
    for output in outputs:
        assert_close(output, output[:1].expand_as(output))
        scaled = torch.tensor(1 / (1 - p), dtype=torch.float64)
        assert_close(output, torch.where(output == 0, 0.0, scaled))
    firsts = [output[0] for output in outputs if len(output)]
    assert len({tuple(first.tolist()) for first in firsts}) == len(firsts), "two sequences have one mask"
    laws.seed(seed)
    assert_close(encode(LockedDropout(p), xs), outputs)


def test_a_locked_mask_covers_all_feature_dimensions() -> None:
    torch.manual_seed(0)
    (x,) = encode(LockedDropout(0.5), [torch.ones(3, 8, 5)])
    assert len({tuple(row.tolist()) for row in x[0]}) > 1
    assert_close(x, x[:1].expand_as(x))
    torch.manual_seed(0)
    assert_close(LockedDropout(0.5)(torch.ones(3, 8, 5)), x)


def test_the_share_that_a_locked_mask_drops() -> None:
    torch.manual_seed(0)
    (x,) = encode(LockedDropout(0.25), [torch.ones(1, 10000)])
    assert float((x == 0).double().mean()) == pytest.approx(0.25, abs=0.02)


@laws.fewer_examples(3)
@for_all_lengths(p=st.floats(0.2, 0.8), seed=st.integers(0, 9))
def test_word_dropout_drops_whole_steps_and_leaves_the_others(lengths: list[int], p: float, seed: int) -> None:
    laws.seed(seed)
    values = make((sum(lengths), 3, 2), torch.float64).requires_grad_()
    batch = SequenceBatch(values, lengths)
    outputs = encode(WordDropout(p), batch).values
    kept = ~(outputs == 0).all(2).all(1)[:, None, None]
    assert_close(outputs, values * kept)
    (gradient,) = torch.autograd.grad(outputs.sum(), values)
    assert_close(gradient, kept.expand_as(values).to(torch.float64))
    laws.seed(seed)
    assert_close(encode(WordDropout(p), batch).values, outputs)


def test_word_dropout_drops_some_steps_of_each_sequence() -> None:
    torch.manual_seed(0)
    outputs = encode(WordDropout(0.25), [torch.ones(5000), torch.ones(5000)])
    shares = [float((output == 0).double().mean()) for output in outputs]
    assert shares == pytest.approx([0.25, 0.25], abs=0.03)
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_word_dropout_of_ids(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    xs = [torch.full((n, 2), 7, dtype=dtype) for n in (400, 0, 300)]
    for x, output in zip(xs, encode(WordDropout(0.5, token=3), xs), strict=True):
        assert (output.dtype, output.shape) == (dtype, x.shape)
        assert set(output.flatten().tolist()) == ({3, 7} if len(x) else set())
        assert torch.equal(output[:, 0], output[:, 1])


def test_a_model_of_both() -> None:
    model = nn.Sequential(WordDropout(0.1, token=0), nn.Embedding(9, 4), LockedDropout(0.5), nn.GRU(4, 3))
    assert encode(model, [torch.tensor([1, 2, 3]), torch.tensor([4])])[0].shape == (3, 3)
    laws.check_alone(model.eval(), [torch.tensor([1, 2, 3]), torch.tensor([4])])


@pytest.mark.parametrize("lengths", [[2, 2], [3, 0]])
@pytest.mark.parametrize(
    ("layer", "dtype", "message"),
    [
        (
            LockedDropout(0.5),
            torch.int64,
            r"`sequences` must have a floating or complex dtype, for LockedDropout\(p=0\.5\); got torch\.int64\.$",
        ),
        (
            WordDropout(0.5),
            torch.int64,
            r"`sequences` must have a floating or complex dtype, for WordDropout\(p=0\.5\); got torch\.int64\. For ids "
            r"pass the one that replaces a dropped word: WordDropout\(p, token=unknown\)\.",
        ),
        (
            WordDropout(0.5, token=3),
            torch.float32,
            r"`sequences` must have an integer dtype, for WordDropout\(p=0\.5, token=3\); got torch\.float32\. For fea",
        ),
        (WordDropout(0.5, token=3), torch.bool, r"must have an integer dtype, for .*; got torch\.bool\. For features"),
        (WordDropout(0.5, token=3), torch.complex64, r"must have an integer dtype, for .*; got torch\.complex64\. For"),
    ],
)
def test_wrong_dtypes(layer: nn.Module, dtype: torch.dtype, message: str, lengths: list[int]) -> None:
    xs: list[Tensor] = [make((n, 2), dtype) for n in lengths]
    for training in (True, False):
        laws.check_refused(layer.train(training), xs, SeqbatchTypeError, message)
        with pytest.raises(SeqbatchTypeError, match=message.replace("sequences", "sequence")):
            layer(xs[0])


def test_memory() -> None:
    laws.check_memory(nn.Sequential(nn.Linear(32, 32), LockedDropout(0.5), WordDropout(0.5)), 32, times=12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("token", "dtype", "span"),
    [(-1, torch.uint8, "0 to 255"), (300, torch.uint8, "0 to 255"), (128, torch.int8, "-128 to 127")],
)
def test_tokens_that_the_dtype_cannot_hold(token: int, dtype: torch.dtype, span: str, training: bool) -> None:
    layer, x = WordDropout(1.0, token=token).train(training), torch.ones(3, dtype=dtype)
    message = rf"`token` must be from {span}, for {dtype} of `{{}}`; got {token}\."
    with pytest.raises(SeqbatchValueError, match=message.format("sequence")):
        layer(x)
    laws.check_refused(layer, [x, x[:0]], SeqbatchValueError, message.format("sequences"))
    assert encode(layer, x.to(torch.int16)).tolist() == [token if training else 1] * 3
