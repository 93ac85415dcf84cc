"""Models and batches for graphs: the six patterns of lengths, and models that are compiled, exported and compared."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
import torch._functorch.config as functorch_config
import torch._inductor.config as inductor_config
from torch import Tensor, nn
from torch.utils import _pytree

from seqbatch import LSTMState, RNNState, SequenceBatch, encode, encode_with_state

Function = Callable[..., Any]
# The six patterns, and an empty batch. Each has several sequences, because torch specializes sizes 0 and 1.
PATTERNS: dict[str, list[int]] = {
    "ragged": [3, 5, 2],
    "equal": [4, 4],
    "ragged sorted": [6, 4, 4, 1],
    "with 0s": [0, 5, 0, 2],
    "with 1s": [1, 1, 7],
    "one of many": [2, 9],
}
ALL_0 = [0, 0, 0]  # the sixth, which is of a size that torch makes another graph for
SMALL: dict[str, list[int]] = {"all 0": ALL_0, "one": [4], "one step": [1], "one of none": [0], "none": []}

LAYERS: dict[str, Any] = {
    "lstm": lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True),
    "projected": lambda: nn.LSTM(4, 3, num_layers=2, proj_size=2, bias=False),
    "gru": lambda: nn.GRU(4, 3, num_layers=2),
    "rnn": lambda: nn.RNN(4, 3, bidirectional=True, nonlinearity="relu"),
    "tanh": lambda: nn.RNN(4, 3),
}


@pytest.fixture(autouse=True)
def allow_recurrent_layers() -> Iterator[None]:
    """Allow PyTorch's compiler to trace recurrent layers, which it does not do by default."""
    dynamo.reset()
    dynamo.utils.counters.clear()
    # Not what Inductor keeps on disk, which it would find again although an operator has become another.
    kept = inductor_config.patch(fx_graph_cache=False), functorch_config.patch(enable_autograd_cache=False)
    with dynamo.config.patch(allow_rnn=True), kept[0], kept[1]:
        yield
    dynamo.reset()


def compiled(function: Function, *, backend: str = "aot_eager") -> Function:
    made: Function = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    return made


def graphs() -> int:
    return int(dynamo.utils.counters["stats"]["unique_graphs"])


def tensors(results: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(results) if leaf is not None]


class Tagger(nn.Module):
    """What a user writes: an embedding, a recurrent layer, scores of each step, and a summary of each sequence."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.rnn = nn.Embedding(9, 4), LAYERS[kind]()
        self.size = (self.rnn.proj_size or self.rnn.hidden_size) * (2 if self.rnn.bidirectional else 1)
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(self.size, 2))

    def forward(self, tokens: SequenceBatch) -> tuple[SequenceBatch, Tensor, LSTMState | RNNState]:
        outputs, state = encode_with_state(self.rnn, encode(self.embedding, tokens))
        return encode(self.head, outputs), outputs.mean(), state

    def alone(self, tokens: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Return the same for one sequence, by PyTorch alone; the state in PyTorch's layout, None without a step."""
        if not len(tokens):
            return torch.zeros(0, 2), torch.zeros(self.size), None
        outputs, state = self.rnn(self.embedding(tokens))
        return self.head(outputs), outputs.mean(0), state


def tokens(lengths: list[int], seed: int = 0) -> SequenceBatch:
    generator = torch.Generator().manual_seed(seed)
    return SequenceBatch(torch.randint(9, (sum(lengths),), generator=generator), lengths)


def signals(lengths: list[int], size: int = 4, seed: int = 0) -> SequenceBatch:
    generator = torch.Generator().manual_seed(seed)
    return SequenceBatch(torch.randn(sum(lengths), size, generator=generator), lengths)


def check_alone(model: Tagger, batch: SequenceBatch, results: Any) -> None:
    """Compare results with those of each sequence alone."""
    outputs, means, state = results
    assert outputs.lengths == batch.lengths
    for i, sequence in enumerate(batch):
        scores, mean, end = model.alone(sequence)
        torch.testing.assert_close(outputs[i], scores)
        torch.testing.assert_close(means[i], mean)
        found = _pytree.tree_leaves(state[i].to_torch())
        for part, wanted in zip(found, [None] * len(found) if end is None else _pytree.tree_leaves(end), strict=True):
            torch.testing.assert_close(part[:, 0], torch.zeros_like(part[:, 0]) if wanted is None else wanted)
