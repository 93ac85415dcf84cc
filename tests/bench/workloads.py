"""What is measured: layers and sequences of many shapes, made anew from a fixed seed."""

import attrs
import torch
from torch import Tensor, nn

KINDS: dict[str, type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@attrs.frozen
class Workload:
    """A layer and sequences for it: lengths are uniform from `shortest` to `longest`, or as `given`."""

    name: str
    batch: int
    features: int
    hidden: int
    num_layers: int = 1
    two_way: bool = False
    shortest: int = 1
    longest: int = 1
    given: tuple[int, ...] = ()

    def lengths(self) -> list[int]:
        """The steps of each sequence."""
        if self.given:
            return list(self.given)
        generator = torch.Generator().manual_seed(1)
        drawn: list[int] = torch.randint(self.shortest, self.longest + 1, (self.batch,), generator=generator).tolist()
        return drawn

    def sequences(self, gradients: bool, device: str) -> list[Tensor]:
        """Sequences of random values, which want gradients as inputs from an earlier layer would."""
        made = [torch.randn(length, self.features, device=device) for length in self.lengths()]
        return [one.requires_grad_() for one in made] if gradients else made

    def layer(self, kind: str, device: str) -> nn.RNNBase:
        """A layer of a kind, with random weights."""
        return KINDS[kind](
            self.features, self.hidden, num_layers=self.num_layers, bidirectional=self.two_way, device=device
        )

    def products(self) -> list[tuple[int, int, int]]:
        """The matrix products that no way of running the layer can do without: rows, inner size, columns per gate."""
        steps, ways = sum(self.lengths()), 2 if self.two_way else 1
        inputs = [self.features] + [ways * self.hidden] * (self.num_layers - 1)
        return [(steps, size, self.hidden) for inner in inputs for size in (inner, self.hidden) for _ in range(ways)]


# The first eight are of usual tasks; the others each go to an extreme.
WORKLOADS = [
    Workload("tagger, small", 32, 64, 64, shortest=5, longest=60),
    Workload("tagger", 32, 128, 128, num_layers=2, two_way=True, shortest=5, longest=60),
    Workload("tagger, large", 32, 300, 256, num_layers=2, two_way=True, shortest=5, longest=60),
    Workload("language model", 64, 256, 512, shortest=20, longest=100),
    Workload("sensors", 128, 100, 100, two_way=True, shortest=1, longest=200),
    Workload("classifier", 256, 64, 256, shortest=10, longest=50),
    Workload("wide", 16, 64, 1024, shortest=10, longest=50),
    Workload("tiny", 8, 64, 64, shortest=5, longest=40),
    Workload("one sequence", 1, 64, 128, given=(100,)),
    Workload("equal lengths", 32, 64, 128, given=(40,) * 32),
    Workload("one long, many short", 128, 64, 64, given=(1,) * 127 + (500,)),
    Workload("single steps", 512, 64, 64, given=(1,) * 512),
    Workload("long", 8, 64, 64, shortest=500, longest=1000),
]
