"""Silent wrong answers of plain PyTorch: each shown to be wrong or silent there, and right or refused in seqbatch."""

from contextlib import suppress

import pytest
import torch
from reference import run_alone
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence
from torch.testing import assert_close

from seqbatch import LSTMState, SeqbatchTypeError, SeqbatchValueError, SequenceBatch, encode, encode_with_state


def steps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wrong(found: Tensor, right: Tensor) -> bool:
    """Return True if a result has the right shape, so that no error shows, and wrong values."""
    return found.shape == right.shape and not torch.allclose(found, right, atol=1e-3)


def layer(kind: type[nn.RNNBase], *sizes: int, **options: bool) -> nn.RNNBase:
    torch.manual_seed(0)
    return kind(*sizes, **options)  # type: ignore[arg-type]  # they all take sizes and options


XS = [steps(6, 5), steps(3, 5, seed=1), steps(4, 5, seed=2)]
PADDED, LENGTHS = pad_sequence(XS, batch_first=True), [6, 3, 4]


def test_the_last_step_of_a_padded_output_is_padding() -> None:
    gru = layer(nn.GRU, 5, 3, batch_first=True)
    right = torch.stack([output[-1] for output in run_alone(gru, XS)[0]])
    assert wrong(gru(PADDED)[0][:, -1], right)
    packed = gru(pack_padded_sequence(PADDED, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False))[0]
    assert wrong(pad_packed_sequence(packed, batch_first=True)[0][:, -1], right)
    assert_close(encode(gru, SequenceBatch.from_sequences(XS)).last(), right)
    assert_close(encode_with_state(gru, XS)[1].last(), right)


def test_the_last_step_of_a_two_way_output_has_seen_one_step_backward() -> None:
    gru = layer(nn.GRU, 5, 3, bidirectional=True)
    right = run_alone(gru, XS)[1][0][0].transpose(0, 1).flatten(1)
    outputs, state = encode_with_state(gru, SequenceBatch.from_sequences(XS))
    one_step = [gru(x[-1:])[0][0, 3:] for x in XS]
    assert_close(outputs.last()[:, 3:], torch.stack(one_step))  # so it is not the summary that it looks like
    assert wrong(outputs.last(), right)
    assert_close(state.last(), right)


def test_view_of_the_final_state_mixes_the_sequences() -> None:
    lstm = layer(nn.LSTM, 5, 3, bidirectional=True)
    xs = [x[:3] for x in XS]
    _, (hidden, _) = lstm(torch.stack(xs, 1))
    right = torch.stack([lstm(x)[1][0].flatten() for x in xs])
    assert wrong(hidden.view(3, -1), right)
    state = encode_with_state(lstm, xs)[1]
    assert_close(state.last(), right)
    assert_close(state.select([1]).last(), right[1:2])


def test_view_where_transpose_is_meant_mixes_the_sequences() -> None:
    gru = layer(nn.GRU, 5, 3)
    xs = [x[:3] for x in XS]
    right = run_alone(gru, xs)[0]
    assert wrong(gru(torch.stack(xs).view(3, 3, 5))[0], torch.stack(right, 1))
    assert_close(encode(gru, xs), right)
    padded = SequenceBatch.from_sequences(xs).to_padded(batch_first=False)
    assert_close(padded, torch.stack(xs).transpose(0, 1))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_two_way_results_of_a_padded_run(kind: type[nn.RNNBase]) -> None:
    two_way = layer(kind, 5, 3, batch_first=True, bidirectional=True)
    outputs, _ = two_way(PADDED)
    right, _ = run_alone(two_way, XS)
    for i, length in enumerate(LENGTHS):
        backward = outputs[i, :length, 3:]
        assert wrong(backward, right[i][:, 3:]) == (length < max(LENGTHS))
    assert_close(encode(two_way, XS), right)
    from_padded = SequenceBatch.from_padded(PADDED, LENGTHS, batch_first=True)
    assert_close(list(encode(two_way, from_padded)), right)


def test_final_state_of_a_padded_run() -> None:
    lstm = layer(nn.LSTM, 5, 3, batch_first=True)
    _, (hidden, cell) = lstm(PADDED)
    for i, x in enumerate(XS[1:], 1):
        _, (hidden_alone, cell_alone) = lstm(x)
        assert wrong(hidden[:, i], hidden_alone)
        assert wrong(cell[:, i], cell_alone)
        state = encode_with_state(lstm, XS)[1]
        assert_close(state.hidden[:, 0, i], hidden_alone)
        assert_close(state.cell[:, 0, i], cell_alone)


def test_four_by_four_over_the_wrong_axis() -> None:
    gru = layer(nn.GRU, 5, 3)
    xs = [steps(4, 5, seed=seed) for seed in range(4)]
    batch_first = torch.stack(xs)
    right = run_alone(gru, xs)[0]
    assert wrong(gru(batch_first)[0], torch.stack(right))
    with pytest.raises(TypeError, match=r"missing 1 required keyword-only argument: 'batch_first'"):
        SequenceBatch.from_padded(batch_first, [4] * 4)  # type: ignore[call-arg]  # the axis is never guessed
    with pytest.raises(SeqbatchValueError, match=r"`sequences` must have features \(5,\), .*; got \(4, 5\)\. For"):
        encode(gru, batch_first)
    assert_close(list(encode(gru, SequenceBatch.from_padded(batch_first, [4] * 4, batch_first=True))), right)
    gru.batch_first = True  # what the layer would have made of it does not matter
    assert_close(encode(gru, xs), right)


def pack(xs: list[Tensor], order: list[int]) -> PackedSequence:
    packed = pack_sequence([xs[i] for i in order])
    return PackedSequence(packed.data, packed.batch_sizes, torch.tensor(order))


def test_adding_the_data_of_packed_sequences_in_different_order() -> None:
    xs, ys = ([steps(n, 5, seed=seed + i) for i, n in enumerate((3, 6, 3))] for seed in (0, 3))
    right = [x + y for x, y in zip(xs, ys, strict=True)]
    one, other = pack(xs, [1, 0, 2]), pack(ys, [1, 2, 0])
    # No error, because both have the same numbers of steps; but the first was added to the third.
    read = pad_packed_sequence(PackedSequence(one.data + other.data, *one[1:]), batch_first=True)[0]
    assert wrong(read[0, :3], right[0])
    assert wrong(read[2, :3], right[2])
    batch = SequenceBatch.from_packed(one)
    assert_close(list(batch.map(torch.add, SequenceBatch.from_packed(other))), right)
    sorted_before = SequenceBatch.from_packed(pack_sequence([ys[1], ys[2], ys[0]]))
    message = r"`others\[0\]` must have the lengths of this batch, 3 steps in sequence 0; got 6\."
    with pytest.raises(SeqbatchValueError, match=message):
        batch.map(torch.add, sorted_before)


def test_float_lengths_are_floored() -> None:
    fractions = torch.tensor([0.99, 0.5])  # of 6 steps, as some loaders of audio give them
    sizes = pack_padded_sequence(PADDED[:2], 6 * fractions, batch_first=True).batch_sizes
    assert sizes.tolist() == [2, 2, 2, 1, 1]  # 5.94 steps became 5
    with pytest.raises(SeqbatchTypeError, match=r"`lengths` must be integers, as a Tensor .*; got shape"):
        SequenceBatch.from_padded(PADDED[:2], 6 * fractions, batch_first=True)
    with pytest.raises(SeqbatchTypeError, match=r"`lengths\[0\]` must be an integer; got 5\.94"):
        SequenceBatch.from_padded(PADDED[:2], (6 * fractions).tolist(), batch_first=True)


def test_lengths_above_the_true_size() -> None:
    packed = pack_padded_sequence(PADDED, torch.tensor([6, 9, 4]), batch_first=True, enforce_sorted=False)
    assert packed.batch_sizes.tolist() == [3, 3, 3, 3, 2, 2, 1, 1, 1]  # 19 steps of 9 times
    assert packed.data.shape == (16, 5)  # of which it holds 16
    with pytest.raises(SeqbatchValueError, match=r"`packed\.batch_sizes` must add up to 16, the steps of .*; got 19\."):
        SequenceBatch.from_packed(packed)
    with pytest.raises(SeqbatchValueError, match=r"`lengths\[1\]` must be at most 6, the time axis; got 9\."):
        SequenceBatch.from_padded(PADDED, [6, 9, 4], batch_first=True)
    with pytest.raises(SeqbatchValueError, match=r"`lengths` must add up to 13, the steps of `values`; got 16\."):
        SequenceBatch(torch.cat(XS), [6, 6, 4])


def test_rows_of_an_initial_state_without_a_sequence() -> None:
    lstm = layer(nn.LSTM, 5, 3)
    xs = [x[:3] for x in XS]
    hidden, cell = steps(1, 5, 3), steps(1, 5, 3, seed=1)
    with suppress(RuntimeError):  # which PyTorch raises before 2.13
        found = lstm(pack_sequence(xs), (hidden, cell))[0].data
        assert_close(found, lstm(pack_sequence(xs), (hidden[:, :3], cell[:, :3]))[0].data)  # no error: two rows ignored
    state = LSTMState.from_torch((hidden, cell), lstm)
    for given in (xs, XS):
        message = r"`state\.hidden` must have shape \(1, 1, 3, 3\), for 3 sequences and .*; got \(1, 1, 5, 3\)\."
        with pytest.raises(SeqbatchValueError, match=message):
            encode_with_state(lstm, given, state)


def test_masks_with_holes_are_summed_to_a_length() -> None:
    mask = torch.tensor([[True, True, True], [True, False, True]])
    padded = steps(2, 3, 5)
    packed = pack_padded_sequence(padded, mask.sum(1), batch_first=True)
    read = pad_packed_sequence(packed, batch_first=True)[0][1, :2]
    assert_close(read, padded[1, :2])  # the masked step was read, and the real one dropped
    assert wrong(read, padded[1][mask[1]])
    message = r"`mask` must have its True steps side by side in each sequence; got a hole in sequence 1\."
    with pytest.raises(SeqbatchValueError, match=message):
        SequenceBatch.from_mask(padded, mask, batch_first=True)
