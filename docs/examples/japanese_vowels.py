"""Recognize nine speakers by two Japanese vowels, from recordings of unequal length.

The data set Japanese Vowels (M. Kudo, J. Toyama, M. Shimbo, 1999) comes with aeon: 270 recordings to train on and 370
to test on, of 7 to 29 steps and 12 features each.

    pip install "seqbatch[demo]"
    python japanese_vowels.py --model transformer
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from seqbatch import SequenceBatch, encode, encode_with_state

try:
    from aeon.datasets import load_japanese_vowels
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from tqdm import tqdm
except ModuleNotFoundError as error:
    print(f'error: {error}. This example needs more: pip install "seqbatch[demo]"', file=sys.stderr)
    sys.exit(2)

FEATURES = 12
SPEAKERS = 9
# The noise is nearly as large as the features' own spread: 30 recordings of a speaker are few, and quickly learned by
# heart. Chosen by cross-validation on the training recordings.
NOISE = 0.9


@dataclass(frozen=True)
class Split:
    """Recordings, and who speaks in each: `(batch,)`, from 0 to 8."""

    recordings: SequenceBatch
    speakers: Tensor


@dataclass(frozen=True)
class History:
    """The measurements after each epoch, by the name of the split."""

    losses: dict[str, list[float]]
    accuracies: dict[str, list[float]]


# From half the number of features to the layers that read the recordings.
BODIES: dict[str, Callable[[int], nn.Module]] = {
    "lstm": lambda size: nn.LSTM(FEATURES, size, bidirectional=True),
    "gru": lambda size: nn.GRU(FEATURES, size, bidirectional=True),
    "conv": lambda size: nn.Sequential(
        nn.Conv1d(FEATURES, 2 * size, 5, padding="same"),
        nn.ReLU(),
        nn.Conv1d(2 * size, 2 * size, 5, padding="same"),
        nn.ReLU(),
    ),
    "transformer": lambda size: nn.Sequential(
        nn.Linear(FEATURES, 2 * size),
        nn.TransformerEncoderLayer(2 * size, 4, 4 * size, batch_first=True),
    ),
}
# Attention diverges at the rate that suits the others.
RATES = {"lstm": 0.005, "gru": 0.005, "conv": 0.003, "transformer": 0.002}


class SpeakerClassifier(nn.Module):
    """Layers that read the recordings, and a linear layer on one summary of each.

    The summary is the final state of a recurrent layer, or else the mean of all steps.
    """

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.body = BODIES[kind](size)
        self.linear = nn.Linear(2 * size, SPEAKERS)

    def forward(self, recordings: SequenceBatch) -> Tensor:
        """Return the scores of the speakers, `(batch, 9)`."""
        if isinstance(self.body, (nn.LSTM, nn.GRU)):
            summary = encode_with_state(self.body, recordings)[1].last()
        else:
            summary = encode(self.body, recordings).mean()
        scores: Tensor = self.linear(summary)
        return scores


def load_split(name: str) -> Split:
    """Load "train" or "test" from the files that come with aeon."""
    # By its annotations aeon may return something else, but it returns a pair.
    loaded: Any = load_japanese_vowels(split=name)
    arrays, speakers = loaded
    # aeon has the features first, and calls the speakers "1" to "9".
    recordings = SequenceBatch.from_sequences(torch.tensor(array.T, dtype=torch.float32) for array in arrays)
    return Split(recordings, torch.tensor([int(speaker) - 1 for speaker in speakers]))


def load_data() -> dict[str, Split]:
    """Load both splits, each feature scaled by its mean and spread in the training split."""
    splits = {name: load_split(name) for name in ("train", "test")}
    steps = splits["train"].recordings.values
    mean, spread = steps.mean(0), steps.std(0)

    def scale(values: Tensor) -> Tensor:
        return (values - mean) / spread

    return {name: Split(split.recordings.map(scale), split.speakers) for name, split in splits.items()}


def add_noise(values: Tensor) -> Tensor:
    """Blur the features of each step."""
    return values + NOISE * torch.randn_like(values)


def train_epoch(model: SpeakerClassifier, optimizer: torch.optim.Optimizer, split: Split, batch: int) -> None:
    """Train on the split once, in random order."""
    model.train()
    for indices in torch.randperm(len(split.recordings)).split(batch):
        scores = model(split.recordings[indices].map(add_noise))
        loss = nn.functional.cross_entropy(scores, split.speakers[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def score(model: SpeakerClassifier, split: Split) -> Tensor:
    """Return the scores of the speakers for each recording, `(batch, 9)`, without noise."""
    model.eval()
    scores: Tensor = model(split.recordings)
    return scores


def measure(scores: Tensor, speakers: Tensor) -> tuple[float, float]:
    """Return the mean loss, and the accuracy in percent."""
    right = int((scores.argmax(1) == speakers).sum())
    return nn.functional.cross_entropy(scores, speakers).item(), 100 * right / len(speakers)


def train_model(options: argparse.Namespace, splits: dict[str, Split]) -> tuple[SpeakerClassifier, History]:
    """Train for a number of epochs; the test split is measured after each, and decides nothing."""
    model = SpeakerClassifier(options.model, options.hidden)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr or RATES[options.model])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    history = History({name: [] for name in splits}, {name: [] for name in splits})
    for _ in tqdm(range(options.epochs), desc="training", unit="epoch"):
        train_epoch(model, optimizer, splits["train"], options.batch)
        scheduler.step()
        for name, split in splits.items():
            loss, accuracy = measure(score(model, split), split.speakers)
            history.losses[name].append(loss)
            history.accuracies[name].append(accuracy)
    return model, history


def print_predictions(scores: Tensor, test: Split, number: int = 8) -> None:
    """Print the predictions for a few test recordings, evenly spaced."""
    probabilities, predictions = scores.softmax(1).max(1)
    print("recording  steps  speaker  predicted  probability")
    for i in range(0, len(test.recordings), len(test.recordings) // number)[:number]:
        speaker, predicted = int(test.speakers[i]) + 1, int(predictions[i]) + 1
        print(f"{i:9}  {test.recordings.lengths[i]:5}  {speaker:7}  {predicted:9}  {probabilities[i]:11.3f}")


def draw_curves(axes: Axes, title: str, curves: dict[str, list[float]]) -> None:
    """Draw one quantity by epoch, a line for each split."""
    for (name, curve), style in zip(curves.items(), ("--", "-"), strict=True):
        axes.plot(range(1, len(curve) + 1), curve, style, marker=".", label=name)
    axes.set(title=title, xlabel="epoch")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend()


def draw_confusion(axes: Axes, predictions: Tensor, speakers: Tensor) -> None:
    """Draw the confusion matrix: for each speaker, the share of recordings by predicted speaker."""
    counts = torch.bincount(speakers * SPEAKERS + predictions, minlength=SPEAKERS**2).view(SPEAKERS, SPEAKERS)
    # The speakers have 24 to 88 test recordings, so that only shares give comparable colours.
    shares = counts / counts.sum(1, keepdim=True)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row, column in counts.nonzero().tolist():
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", color=colour)
    names = [str(speaker + 1) for speaker in range(SPEAKERS)]
    axes.set_xticks(range(SPEAKERS), names)
    axes.set_yticks(range(SPEAKERS), names)
    axes.set(title="Test recordings by speaker", xlabel="predicted speaker", ylabel="true speaker")


def save_picture(path: Path, history: History, predictions: Tensor, speakers: Tensor) -> None:
    """Save the learning curves and the confusion matrix as one PNG."""
    # A Figure of its own, without pyplot, draws by Agg and needs no screen.
    figure = Figure(figsize=(12, 6), layout="constrained")
    parts = figure.subplot_mosaic([["loss", "confusion"], ["accuracy", "confusion"]])
    draw_curves(parts["loss"], "Loss", history.losses)
    parts["loss"].set_yscale("log")
    draw_curves(parts["accuracy"], "Accuracy in %", history.accuracies)
    draw_confusion(parts["confusion"], predictions, speakers)
    figure.suptitle(f"Japanese Vowels: test accuracy {history.accuracies['test'][-1]:.2f} %")
    figure.savefig(path, dpi=120)


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser that does not print the usage before an error."""

    def error(self, message: str) -> NoReturn:
        """Print the error as one line, and exit with 2."""
        self.exit(2, f"error: {message}\n")


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """Build a parser of positive numbers of a type."""

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = 0
        if not 0 < number < float("inf"):
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"must be a positive {what}, not {text!r}")
        return number

    return read


def parse_options() -> argparse.Namespace:
    """Read the command line, and check the place of the picture before any training."""
    parser = OneLineParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--epochs", type=positive(int), default=40, help="passes over the training recordings (%(default)s)")
    add("--model", choices=[*BODIES], default="lstm", help="what reads the recordings (%(default)s)")
    add("--hidden", type=positive(int), default=64, help="size of a layer in each direction (%(default)s)")
    add("--batch", type=positive(int), default=30, help="recordings for one step of training (%(default)s)")
    add("--lr", type=positive(float), help="learning rate at the start (by the model)")
    add("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    add("--threads", type=positive(int), help="threads for torch (as torch sets them)")
    add("--output", type=Path, default="japanese_vowels.png", metavar="PATH", help="the picture (%(default)s)")
    add(
        "--minimum-accuracy",
        type=positive(float),
        metavar="PERCENT",
        help="fail if the test accuracy is below (no check)",
    )
    options = parser.parse_args()
    folder = options.output.parent
    if not folder.is_dir():
        parser.error(f"argument --output: there is no folder {str(folder)!r}")
    if options.output.is_dir() or options.output.suffix.lower() != ".png":
        parser.error(f"argument --output: must be a file that ends in .png, not {str(options.output)!r}")
    return options


def main() -> int:
    """Train, measure, print and draw."""
    options = parse_options()
    torch.manual_seed(options.seed)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    splits = load_data()
    for name, split in splits.items():
        print(f"{name}: {split.recordings}")
    model, history = train_model(options, splits)
    for name, losses in history.losses.items():
        print(f"{name} loss {losses[-1]:.4f}, {name} accuracy {history.accuracies[name][-1]:.2f} %")
    test = splits["test"]
    scores = score(model, test)
    print_predictions(scores, test)
    save_picture(options.output, history, scores.argmax(1), test.speakers)
    print(f"The learning curves and the confusion matrix are in {options.output}")
    accuracy = history.accuracies["test"][-1]
    if options.minimum_accuracy is not None and accuracy < options.minimum_accuracy:
        print(f"error: test accuracy {accuracy:.2f} % is below {options.minimum_accuracy:g} %", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
