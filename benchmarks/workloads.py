"""What is measured: layers and sequences of many shapes, made anew from a fixed seed."""

import attrs
import torch
from torch import Tensor, nn

KINDS: dict[str, type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@attrs.frozen
class Sequences:
    """Sequences of one kind: lengths are uniform from `shortest` to `longest`, or as `given`.

    Those of 0 features are one-dimensional, of token ids.
    """

    name: str
    batch: int
    features: int
    shortest: int = attrs.field(default=1, kw_only=True)
    longest: int = attrs.field(default=1, kw_only=True)
    given: tuple[int, ...] = attrs.field(default=(), kw_only=True)

    def lengths(self) -> list[int]:
        """The steps of each sequence."""
        if self.given:
            return list(self.given)
        generator = torch.Generator().manual_seed(1)
        drawn: list[int] = torch.randint(self.shortest, self.longest + 1, (self.batch,), generator=generator).tolist()
        return drawn

    def sequences(self, gradients: bool, device: str) -> list[Tensor]:
        """Sequences of random values, which want gradients as inputs from an earlier layer would."""
        if not self.features:
            return [torch.randint(1000, (length,), device=device) for length in self.lengths()]
        made = [torch.randn(length, self.features, device=device) for length in self.lengths()]
        return [one.requires_grad_() for one in made] if gradients else made


@attrs.frozen
class Workload(Sequences):
    """A layer and sequences for it."""

    hidden: int
    num_layers: int = 1
    two_way: bool = False

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

# For layers of many families, as wide as the steps are.
WIDTHS = [
    Sequences("tiny, 8 x 5-40 x 64", 8, 64, shortest=5, longest=40),
    Sequences("32 x 5-60 x 64", 32, 64, shortest=5, longest=60),
    Sequences("128 x 1-200 x 128", 128, 128, shortest=1, longest=200),
    Sequences("one long, many short", 128, 64, given=(1,) * 127 + (500,)),
    Sequences("equal lengths, 32 x 40 x 64", 32, 64, given=(40,) * 32),
]

# For the conversions, which know no layers.
BATCHES = [
    Sequences("8 x 5-40 x 64", 8, 64, shortest=5, longest=40),
    Sequences("32 x 5-60 x 64", 32, 64, shortest=5, longest=60),
    Sequences("128 x 1-200 x 100", 128, 100, shortest=1, longest=200),
    Sequences("256 x 10-50 x 256", 256, 256, shortest=10, longest=50),
    Sequences("single steps, 512 x 64", 512, 64, given=(1,) * 512),
    Sequences("one long, many short", 128, 64, given=(1,) * 127 + (500,)),
    Sequences("equal lengths, 32 x 40 x 64", 32, 64, given=(40,) * 32),
    Sequences("token ids, 64 x 5-60", 64, 0, shortest=5, longest=60),
]
