"""A graph that is made in one thread is none of the others' business: what they call meanwhile is right."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from graph_models import allow_recurrent_layers as allow_recurrent_layers
from graph_models import compiled, signals
from torch import Tensor, nn
from torch.export import export
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode
from seqbatch.layers import MeanPool

LAYERS: dict[str, Any] = {
    "lstm": lambda: nn.LSTM(4, 3),
    "gru": lambda: nn.GRU(4, 3, bidirectional=True),
    "sequential": lambda: nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.GRU(4, 3), MeanPool()),
    "cell": lambda: nn.LSTMCell(4, 3),
}
SEQUENCES = [torch.randn(3, 4), torch.randn(2, 4)]


def results(layer: nn.Module) -> list[Tensor]:
    """Run a layer in a thread of its own, with the numbers of its lengths and gradients."""

    def run() -> list[Tensor]:
        outputs = encode(layer, SEQUENCES)
        batch = SequenceBatch.from_sequences(SEQUENCES)
        joined = SequenceBatch.concat([batch, batch]).to_padded(batch_first=True)
        total = torch.cat(outputs).sum() * batch.lengths[0] + joined.sum()
        return [*outputs, joined, *torch.autograd.grad(total, list(layer.parameters()))]

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


@pytest.mark.parametrize("kind", LAYERS)
def test_while_a_program_is_exported(kind: str) -> None:
    layer = LAYERS[kind]()
    found: list[list[Tensor]] = []

    class Model(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            assert torch.compiler.is_compiling()
            found.append(results(layer))
            return values + 1

    export(Model(), (torch.ones(2),))
    assert_close(found[0], results(layer))


@pytest.mark.parametrize("kind", LAYERS)
def test_while_a_graph_is_compiled(kind: str) -> None:
    layer = LAYERS[kind]()
    found: list[list[Tensor]] = []

    def backend(graph: Any, _: object) -> Any:
        assert torch.compiler.is_compiling()
        found.append(results(layer))
        return graph

    torch.compile(lambda values: values + 1, backend=backend)(torch.ones(2))
    assert_close(found[0], results(layer))


def test_a_compiled_model_keeps_its_gradients_while_another_is_exported() -> None:
    lstm, batch = nn.LSTM(4, 3), signals([3, 2])
    graph = compiled(lambda batch: encode(lstm, batch).values.sum())

    def gradients() -> list[Tensor]:
        with dynamo.config.patch(allow_rnn=True):  # which each thread is asked for
            return [*torch.autograd.grad(graph(batch), list(lstm.parameters()))]

    wanted, found = gradients(), list[list[Tensor]]()

    class Model(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            with ThreadPoolExecutor(1) as pool:
                found.append(pool.submit(gradients).result())
            return values + 1

    export(Model(), (torch.ones(2),))
    assert_close(found[0], wanted)
