"""A small model that Lightning and accelerate train, which notes every sample that it is given."""

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from seqbatch import SequenceBatch, encode
from seqbatch.data import BucketBatchSampler, TrackedLoader, collate_sequences

LENGTHS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]
Sample = tuple[Tensor, Tensor]
# The beginning of the error for a loader that is not tracked, in two processes.
MUST_BE_TRACKED = r"^`sampler` must be iterated over by sampler\.track\(loader\), because there are 2 processes"


class Samples(Dataset[Sample]):
    """Sequences of one feature, and the index of each."""

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(LENGTHS[index], 1, generator=generator), torch.tensor(index)


class Model(lightning.LightningModule):
    """Pulls the final state of every sequence towards zero."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.gru, self.head = nn.GRU(1, 4), nn.Linear(4, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.seen: list[list[int]] = []
        self.validated: list[int] = []

    def training_step(self, batch: tuple[SequenceBatch, Tensor], index: int) -> Tensor:
        signals, samples = batch
        self.seen.append(samples.tolist())
        result: Tensor = self.head(encode(self.gru, signals).last())
        return result.square().mean()

    def validation_step(self, batch: tuple[SequenceBatch, Tensor], index: int) -> None:
        # Lightning tries some batches before training, which must not be missing in the first validation.
        if not self.trainer.sanity_checking:
            self.validated += batch[1].tolist()

    def predict_step(self, batch: tuple[SequenceBatch, Tensor], index: int) -> list[int]:
        predicted: list[int] = batch[1].tolist()
        return predicted

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def plain_loader(**options: Any) -> tuple[BucketBatchSampler, DataLoader[Sample]]:
    sampler = BucketBatchSampler(LENGTHS, **{"max_steps": 15, "seed": 2, **options})
    return sampler, DataLoader(Samples(), batch_sampler=sampler, collate_fn=collate_sequences)


def tracked_loader(**options: Any) -> TrackedLoader[Sample]:
    sampler, loader = plain_loader(**options)
    return sampler.track(loader)


def require_each_sample_once(seen: list[list[list[int]]]) -> None:
    """Check the indices of the samples that processes saw, batch by batch, in one epoch."""
    assert sorted(i for part in seen for batch in part for i in batch) == list(range(len(LENGTHS)))


def trainer(**options: Any) -> lightning.Trainer:
    """Return a Trainer on the CPU that writes and prints nothing."""
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return lightning.Trainer(accelerator="cpu", **{"devices": 1, **quiet, **options})
