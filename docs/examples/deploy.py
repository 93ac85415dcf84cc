"""Train a model, and run it in other processes: eager, compiled, exported, and by ONNX Runtime.

The model recognizes nine speakers by two Japanese vowels, as in japanese_vowels.py. Each process loads what it needs
from files, and must predict the same as the model for all test recordings.

    pip install "seqbatch[demo,onnx]" onnxruntime
    python deploy.py --folder deployed
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from seqbatch import SequenceBatch, encode_with_state

try:
    import onnxruntime
    from aeon.datasets import load_japanese_vowels
    from tqdm import tqdm

    import seqbatch.onnx
except ModuleNotFoundError as error:
    print(f'error: {error}. This example needs more: pip install "seqbatch[demo,onnx]" onnxruntime', file=sys.stderr)
    sys.exit(2)

FEATURES = 12
SPEAKERS = 9
# As in japanese_vowels.py.
NOISE = 0.9
# The recordings in a batch, and how often all are run, for the median.
AT_ONCE = 37
TIMES = 15

Scores = Callable[[SequenceBatch], Tensor]


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


def load_data() -> dict[str, tuple[SequenceBatch, Tensor]]:
    """Load the recordings and who speaks in each, from 0 to 8; features are scaled by those of the training split."""
    splits = {}
    for name in ("train", "test"):
        # aeon has the features first, and calls the speakers "1" to "9".
        loaded: Any = load_japanese_vowels(split=name)
        arrays, speakers = loaded
        recordings = SequenceBatch.from_sequences(torch.tensor(array.T, dtype=torch.float32) for array in arrays)
        splits[name] = recordings, torch.tensor([int(speaker) - 1 for speaker in speakers])
    steps = splits["train"][0].values
    mean, spread = steps.mean(0), steps.std(0)

    def scale(values: Tensor) -> Tensor:
        return (values - mean) / spread

    return {name: (split.map(scale), speakers) for name, (split, speakers) in splits.items()}


def train(recordings: SequenceBatch, speakers: Tensor, options: argparse.Namespace) -> SpeakerClassifier:
    """Train a model on noisy recordings."""
    torch.manual_seed(options.seed)
    model = SpeakerClassifier(options.hidden)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    for _ in tqdm(range(options.epochs), desc="training", unit="epoch"):
        for indices in torch.randperm(len(recordings)).split(30):
            noisy = recordings[indices].map(lambda values: values + NOISE * torch.randn_like(values))
            loss = nn.functional.cross_entropy(model(noisy), speakers[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    return model.eval()


def save(model: SpeakerClassifier, example: SequenceBatch, folder: Path) -> None:
    """Write the weights, the exported program and the ONNX file."""
    torch.save(model.state_dict(), folder / "weights.pt")
    steps, number = Dim("steps", min=0), Dim("number", min=0)
    program = torch.export.export(model, (example,), dynamic_shapes=([{0: steps}, {0: number}],))
    torch.export.save(program, folder / "program.pt2")
    seqbatch.onnx.export(model, example, folder / "model.onnx", batch_first=True)


def with_weights(folder: Path) -> SpeakerClassifier:
    weights = torch.load(folder / "weights.pt", weights_only=True)
    model = SpeakerClassifier(weights["linear.weight"].shape[1] // 2)
    model.load_state_dict(weights)
    return model.eval()


def compiled(folder: Path) -> Scores:
    """Compile the model: one graph for all numbers of recordings and steps."""
    torch._dynamo.config.allow_rnn = True  # PyTorch's compiler does not trace nn.LSTM without it
    scores: Scores = torch.compile(with_weights(folder), fullgraph=True, dynamic=True)
    return scores


def exported(folder: Path) -> Scores:
    """Load the exported program, which does not need the class of the model."""
    scores: Scores = torch.export.load(folder / "program.pt2").module()
    return scores


def by_onnxruntime(folder: Path) -> Scores:
    """Load the ONNX file, which does not need PyTorch."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])

    def scores(recordings: SequenceBatch) -> Tensor:
        padded = recordings.to_padded(batch_first=True).numpy()
        (found,) = session.run(None, {"padded": padded, "lengths": torch.tensor(recordings.lengths).numpy()})
        return torch.from_numpy(found)

    return scores


WAYS: dict[str, Callable[[Path], Scores]] = {
    "eager": with_weights,
    "compiled": compiled,
    "exported": exported,
    "onnxruntime": by_onnxruntime,
}


@torch.no_grad()
def serve(way: str, folder: Path) -> None:
    """Run the model in this process, and write its predictions for the test recordings, and its time."""
    scores, (recordings, _) = WAYS[way](folder), load_data()["test"]
    seconds, parts = [], list[Tensor]()
    for _ in range(1 + TIMES):  # the first time it warms up
        start = time.perf_counter()
        # Each batch is built anew, as for incoming recordings.
        parts = [scores(recordings[i : i + AT_ONCE]) for i in range(0, len(recordings), AT_ONCE)]
        seconds.append(time.perf_counter() - start)
    predictions = torch.cat(parts).argmax(1)
    torch.save({"predictions": predictions, "milliseconds": 1000 * median(seconds[1:])}, folder / f"{way}.pt")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--epochs", type=int, default=20, help="passes over the training recordings (%(default)s)")
    add("--hidden", type=int, default=64, help="size of the LSTM in each direction (%(default)s)")
    add("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    add("--folder", type=Path, default=Path("deployed"), help="where the files are written (%(default)s)")
    add("--minimum-accuracy", type=float, metavar="PERCENT", help="fail if the test accuracy is below (no check)")
    add("--serve", choices=[*WAYS], help=argparse.SUPPRESS)  # how this program starts itself
    options = parser.parse_args()
    if min(options.epochs, options.hidden) < 1:
        parser.error("--epochs and --hidden must be at least 1")
    return options


def main() -> int:
    """Train and save, then run the model in each form in its own process, and compare the predictions."""
    options = parse_options()
    if options.serve is not None:
        serve(options.serve, options.folder)
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    splits = load_data()
    model, (recordings, speakers) = train(*splits["train"], options), splits["test"]
    save(model, recordings[:2], options.folder)
    with torch.no_grad():
        predictions = model(recordings).argmax(1)
    accuracy = 100 * (predictions == speakers).double().mean().item()
    print(f"test accuracy {accuracy:.2f} %")
    print(f"way          equal  ms for {len(recordings)} recordings, {AT_ONCE} at once")
    differ = False
    for way in WAYS:
        command = [sys.executable, __file__, "--serve", way, "--folder", str(options.folder)]
        subprocess.run(command, check=True)
        found = torch.load(options.folder / f"{way}.pt", weights_only=True)
        equal = int((found["predictions"] == predictions).sum())
        differ |= equal < len(predictions)
        print(f"{way:11}  {equal:5}  {found['milliseconds']:.1f}")
    if differ:
        print("error: not all ways say the same", file=sys.stderr)
    below = options.minimum_accuracy is not None and accuracy < options.minimum_accuracy
    if below:
        print(f"error: test accuracy {accuracy:.2f} % is below {options.minimum_accuracy:g} %", file=sys.stderr)
    return int(differ or below)


if __name__ == "__main__":
    sys.exit(main())
