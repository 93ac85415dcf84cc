"""A small training, for processes that torchrun starts and to compare them with: model, data, steps, checkpoints."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from seqbatch import SequenceBatch, encode
from seqbatch.data import BucketBatchSampler, TrackedLoader, collate_sequences, mean_loss

FEATURES, TAGS = 5, 3
LENGTHS = [7, 0, 3, 12, 1, 5, 5, 2, 9, 4, 1, 8, 6]
Sample = tuple[Tensor, Tensor]

BODIES: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(FEATURES, 8, num_layers=2, bidirectional=True),
    "gru": lambda: nn.GRU(FEATURES, 16),
    "layers": lambda: nn.Sequential(nn.Conv1d(FEATURES, 8, 3, padding=1), nn.ReLU(), nn.LSTM(8, 16)),
    "dropout": lambda: nn.Sequential(nn.LSTM(FEATURES, 16), nn.Dropout(0.3)),
}


class Tagger(nn.Module):
    """Scores of the tags of each step, `(total_steps, 3)`, by a forward that calls `encode`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body = BODIES[kind]()
        self.head = nn.Linear(16, TAGS)

    def forward(self, batch: SequenceBatch) -> Tensor:
        scores: Tensor = self.head(encode(self.body, batch).values)
        return scores


def make_model(kind: str) -> Tagger:
    torch.manual_seed(0)
    return Tagger(kind)


class Samples(torch.utils.data.Dataset[Sample]):
    """Signals and the tags of their steps; one of them, if asked for, has features too many."""

    def __init__(self, lengths: list[int], wrong: int = -1) -> None:
        self.lengths, self.wrong = lengths, wrong

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        shape = (self.lengths[index], FEATURES + (index == self.wrong))
        return torch.randn(shape, generator=generator), torch.randint(TAGS, shape[:1], generator=generator)


def losses_of(model: nn.Module, batch: tuple[SequenceBatch, SequenceBatch]) -> Tensor:
    """Return the loss of each step."""
    signals, tags = batch
    return cross_entropy(model(signals), tags.values, reduction="none")


def collate(samples: list[Sample]) -> tuple[SequenceBatch, SequenceBatch]:
    """Collate with the features of the data set, also if there are no samples."""
    nothing = torch.zeros(0, FEATURES), torch.zeros(0, dtype=torch.int64)
    signals, tags = collate_sequences(samples or [nothing], sequences=[0, 1])
    return (signals, tags) if samples else (signals[:0], tags[:0])


def train(model: nn.Module, batches: Iterable[Any], optimizer: torch.optim.Optimizer) -> list[float]:
    """Take a step on each batch, and return the loss of each."""
    found = []
    for batch in batches:
        loss = mean_loss(losses_of(model, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


class Run:
    """A training that can be saved and gone on with, and knows which batches it was given."""

    def __init__(self, workers: int, wrap: Callable[[nn.Module], nn.Module] = lambda model: model) -> None:
        self.model = wrap(make_model("dropout"))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.sampler = BucketBatchSampler(LENGTHS, batch_size=2, seed=3)
        loader: DataLoader[Any] = DataLoader(
            Samples(LENGTHS),
            batch_sampler=self.sampler,
            collate_fn=collate,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            # Otherwise each iteration that begins draws a number from torch's own, which dropout draws from.
            generator=torch.Generator(),
        )
        self.loader = self.sampler.track(loader)
        self.seen: list[Tensor] = []

    def go_on(self, batches: int) -> None:
        """Train on so many batches more, over as many epochs as that takes."""
        while batches:
            for batch in self.loader:
                train(self.model, [batch], self.optimizer)
                self.seen.append(batch[0].values)
                batches -= 1
                if not batches:
                    break

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "random": torch.get_rng_state(),
        }

    def save(self, path: Path) -> None:
        torch.save(self.state() | {"seen": self.seen}, path)

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.loader.load_state_dict(saved["loader"])
        torch.set_rng_state(saved["random"])
        self.seen = saved["seen"]


def loader_of(lengths: list[int], wrong: int = -1, **options: Any) -> TrackedLoader[Any]:
    sampler = BucketBatchSampler(lengths, **options)
    loader: DataLoader[Any] = DataLoader(Samples(lengths, wrong), batch_sampler=sampler, collate_fn=collate)
    return sampler.track(loader)


exact = functools.partial(torch.testing.assert_close, rtol=0, atol=0)
