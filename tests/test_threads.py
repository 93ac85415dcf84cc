"""One batch and one layer in many threads at once, which share the plans that are made when first asked for."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode

THREADS, TIMES = 8, 5


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(3, 4, num_layers=2, bidirectional=True),
        nn.LSTM(3, 4, bidirectional=True, proj_size=2),
        nn.GRU(3, 4, bidirectional=True),
        nn.Conv1d(3, 4, 3, padding=1),
        nn.TransformerEncoderLayer(3, 1, dropout=0.0),
    ],
    ids=str,
)
def test_threads_share_a_batch(layer: nn.Module) -> None:
    lengths = [5, 0, 7, 1, 7, 30]
    values = torch.randn(sum(lengths), 3)
    wanted = encode(layer, SequenceBatch(values, lengths)).values
    for _ in range(TIMES):
        batch = SequenceBatch(values, lengths)  # without any plan
        together = threading.Barrier(THREADS)

        def run(batch: SequenceBatch = batch, together: threading.Barrier = together) -> list[Tensor]:
            together.wait(timeout=60)
            hidden = encode(layer, batch)
            return [hidden.values, *torch.autograd.grad(hidden.values.sum(), list(layer.parameters()))]

        with ThreadPoolExecutor(THREADS) as pool:
            first, *others = [found.result() for found in [pool.submit(run) for _ in range(THREADS)]]
        assert_close(first[0], wanted)
        for found in others:
            assert_close(found, first)
