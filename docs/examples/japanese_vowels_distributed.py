"""Recognize nine speakers by two Japanese vowels, trained by several processes at once.

As japanese_vowels.py, with what a larger data set needs: a DataLoader, batches of recordings of similar length, and
`DistributedDataParallel`, on a GPU for each process if there are GPUs. A checkpoint is written after each epoch, and
an existing one is resumed.

    pip install "seqbatch[demo]"
    torchrun --nproc-per-node 2 japanese_vowels_distributed.py

With plain `python` it is one process.
"""

import argparse
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

# Before there is a process group, which its functions would keep for ever as a default.
import torch.distributed.nn
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from seqbatch import SequenceBatch, encode_with_state
from seqbatch.data import BucketBatchSampler, collate_sequences, mean_loss

try:
    from aeon.datasets import load_japanese_vowels
    from tqdm import tqdm
except ModuleNotFoundError as error:
    print(f'error: {error}. This example needs more: pip install "seqbatch[demo]"', file=sys.stderr)
    sys.exit(2)

FEATURES = 12
SPEAKERS = 9
# As in japanese_vowels.py.
NOISE = 0.9

Recordings = list[tuple[Tensor, int]]


class SpeakerClassifier(nn.Module):
    """A bidirectional LSTM that reads the recordings, and a linear layer on its final state."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, size, bidirectional=True)
        self.linear = nn.Linear(2 * size, SPEAKERS)

    def forward(self, recordings: SequenceBatch) -> Tensor:
        """Return the scores of the speakers, `(batch, 9)`."""
        scores: Tensor = self.linear(encode_with_state(self.lstm, recordings)[1].last())
        return scores


def load_data() -> dict[str, Recordings]:
    """Load the recordings and who speaks in each, from 0 to 8; features are scaled by those of the training split."""
    splits = {}
    for name in ("train", "test"):
        # aeon has the features first, and calls the speakers "1" to "9".
        loaded: Any = load_japanese_vowels(split=name)
        arrays, speakers = loaded
        signals = [torch.tensor(array.T, dtype=torch.float32) for array in arrays]
        splits[name] = [(signal, int(speaker) - 1) for signal, speaker in zip(signals, speakers, strict=True)]
    steps = torch.cat([signal for signal, _ in splits["train"]])
    mean, spread = steps.mean(0), steps.std(0)
    return {name: [((x - mean) / spread, speaker) for x, speaker in split] for name, split in splits.items()}


def start() -> torch.device:
    """Join the processes that torchrun has started, or be the only one; return the device of this process."""
    gpus = torch.cuda.is_available()
    backend, timeout = "nccl" if gpus else "gloo", timedelta(seconds=60)
    if distributed.is_torchelastic_launched():
        distributed.init_process_group(backend, timeout=timeout)
    else:
        distributed.init_process_group(backend, init_method="tcp://localhost:0", rank=0, world_size=1)
    if not gpus:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


class Training:
    """The contents of a checkpoint, and how to train on from them."""

    def __init__(self, options: argparse.Namespace, recordings: Recordings, device: torch.device) -> None:
        self.device, self.options = device, options
        model = SpeakerClassifier(options.hidden).to(device)
        self.model = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.005)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, options.epochs)
        self.sampler = BucketBatchSampler(
            [len(signal) for signal, _ in recordings],
            batch_size=max(1, options.batch // distributed.get_world_size()),
            seed=options.seed,
        )
        data: Any = recordings
        loader: DataLoader[Any] = DataLoader(
            data, batch_sampler=self.sampler, collate_fn=collate_sequences, pin_memory=device.type == "cuda"
        )
        self.loader = self.sampler.track(loader)

    def run_epoch(self) -> None:
        """Train on the recordings once."""
        # Each process and epoch has other noise, and a resumed epoch has the same.
        epoch = self.options.seed * self.options.epochs + self.sampler.epoch
        torch.manual_seed(epoch * distributed.get_world_size() + distributed.get_rank())
        self.model.train()
        for recordings, speakers in self.loader:
            scores = self.model(recordings.to(self.device, non_blocking=True).map(add_noise))
            losses = cross_entropy(scores, speakers.to(self.device, non_blocking=True), reduction="none")
            self.optimizer.zero_grad()
            mean_loss(losses).backward()
            self.optimizer.step()
        self.scheduler.step()

    def save(self, path: Path) -> None:
        """Write the checkpoint in one process; an interruption leaves the previous one whole."""
        if distributed.get_rank() == 0:
            unfinished = path.with_suffix(".part")
            parts = {name: part.state_dict() for name, part in self.parts().items()}
            torch.save({"epochs": self.options.epochs, **parts}, unfinished)
            unfinished.replace(path)

    def load(self, path: Path) -> None:
        """Resume from a checkpoint, in the same number of processes."""
        saved = torch.load(path, map_location=self.device, weights_only=True)
        if saved["epochs"] != self.options.epochs:  # by which the learning rate falls
            sys.exit(f"error: the checkpoint is that of {saved['epochs']} epochs; pass --epochs {saved['epochs']}")
        for name, part in self.parts().items():
            part.load_state_dict(saved[name])

    def parts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "optimizer", "scheduler", "loader")}


def add_noise(values: Tensor) -> Tensor:
    """Blur the features of each step."""
    return values + NOISE * torch.randn_like(values)


@torch.no_grad()
def measure(model: nn.Module, recordings: Recordings, device: torch.device) -> tuple[float, float]:
    """Return the mean loss, and the accuracy in percent; each process computes its share."""
    model.eval()
    share: Any = recordings[distributed.get_rank() :: distributed.get_world_size()]
    signals, speakers = collate_sequences(share)
    scores, speakers = model(signals.to(device)), speakers.to(device)
    losses = cross_entropy(scores, speakers, reduction="none")
    sums = torch.stack([losses.sum(), (scores.argmax(1) == speakers).sum()]).double()
    distributed.all_reduce(sums)
    loss, right = (sums / len(recordings)).tolist()
    return loss, 100 * right


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--epochs", type=int, default=40, help="passes over the training recordings (%(default)s)")
    add("--hidden", type=int, default=64, help="size of the LSTM in each direction (%(default)s)")
    add("--batch", type=int, default=30, help="recordings for one step of all processes (%(default)s)")
    add("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    add("--checkpoint", type=Path, metavar="PATH", help="written after each epoch, and gone on with (none)")
    add("--minimum-accuracy", type=float, metavar="PERCENT", help="fail if the test accuracy is below (no check)")
    options = parser.parse_args()
    if min(options.epochs, options.hidden, options.batch) < 1:
        parser.error("--epochs, --hidden and --batch must be at least 1")
    if options.checkpoint is not None and not options.checkpoint.parent.is_dir():
        parser.error(f"argument --checkpoint: there is no folder {str(options.checkpoint.parent)!r}")
    return options


def train(options: argparse.Namespace, splits: dict[str, Recordings], device: torch.device) -> Training:
    """Train for the epochs that are left."""
    torch.manual_seed(options.seed)
    training = Training(options, splits["train"], device)
    if options.checkpoint is not None and options.checkpoint.exists():
        training.load(options.checkpoint)
    left = range(training.sampler.epoch, options.epochs)
    for _ in tqdm(left, desc="training", unit="epoch", disable=distributed.get_rank() > 0):
        training.run_epoch()
        if options.checkpoint is not None:
            training.save(options.checkpoint)
    return training


def train_and_measure(options: argparse.Namespace, device: torch.device) -> dict[str, tuple[float, float]]:
    """Train a model, and return the loss and the accuracy of each split."""
    splits = load_data()
    model = train(options, splits, device).model
    return {name: measure(model, split, device) for name, split in splits.items()}


def main() -> int:
    """Train, measure and print."""
    options = parse_options()
    device = start()
    found = train_and_measure(options, device)
    is_first, processes = distributed.get_rank() == 0, distributed.get_world_size()
    # Its threads end with it, now that no model holds it; one that is busy while Python ends would abort the process.
    distributed.destroy_process_group()
    accuracy = found["test"][1]
    fails = options.minimum_accuracy is not None and accuracy < options.minimum_accuracy
    if is_first:
        print(f"processes: {processes}, device: {device.type}")
        for name, (loss, percent) in found.items():
            print(f"{name} loss {loss:.4f}, {name} accuracy {percent:.2f} %")
        if fails:
            print(f"error: test accuracy {accuracy:.2f} % is below {options.minimum_accuracy:g} %", file=sys.stderr)
    return int(fails)


if __name__ == "__main__":
    sys.exit(main())
