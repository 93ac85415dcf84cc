"""The benchmark: `tox run -e bench`, or `python benchmarks --help`. Prints ratios, writes them as JSON, draws them."""

import argparse
import json
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import conversions
import families
import growth
import measure
import report
import sampling
import steps
import torch
from tqdm import tqdm
from workloads import BATCHES, KINDS, WIDTHS, WORKLOADS

Tasks = list[Callable[[], dict[str, Any]]]


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python benchmarks", description=(__doc__ or "").partition(":")[0])
    add = parser.add_argument
    add("--what", nargs="+", default=[*SECTIONS], choices=[*SECTIONS], help="what to measure (%(default)s)")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="where to run (%(default)s)")
    add("--rounds", type=int, default=9, help="runs of each contender (%(default)s)")
    add("--kinds", nargs="+", default=[*KINDS], choices=[*KINDS], help="layers; growth takes the first (%(default)s)")
    add("--families", nargs="+", default=[*families.FAMILIES], choices=[*families.FAMILIES], help="of families, which")
    add("--only", default="", metavar="TEXT", help="workloads whose name has this text")
    add(
        "--tables",
        type=Path,
        metavar="PATH",
        help="print the tables of results that --json wrote, and draw them if --picture is given; measure nothing",
    )
    add("--json", type=Path, metavar="PATH", help="where to write the results")
    add(
        "--picture",
        type=Path,
        metavar="PATH",
        help="where to draw layers; growth and sampling with -growth and -sampling in the name",
    )
    return parser.parse_args()


def layers(options: argparse.Namespace) -> Tasks:
    """All workloads, by each kind of layer, in inference and in training."""
    return [
        partial(measure.measure, workload, kind, training, options.rounds, options.device)
        for kind in options.kinds
        for training in (False, True)
        for workload in WORKLOADS
        if options.only in workload.name
    ]


def between_layouts(options: argparse.Namespace) -> Tasks:
    """All conversions of all batches, alone and with the way back; through token ids no gradients flow."""
    return [
        partial(conversions.measure, name, batch, training, options.rounds, options.device)
        for name in conversions.TASKS
        for training in (False, True)
        for batch in BATCHES
        if options.only in batch.name and (batch.features or not training)
    ]


def growing(options: argparse.Namespace) -> Tasks:
    """All points of growth of one kind of layer, in inference and in training."""
    return [
        partial(growth.measure, point, options.kinds[0], training, options.rounds, options.device)
        for training in (False, True)
        for point in growth.points()
        if options.only in point.workload.name
    ]


def single_steps(options: argparse.Namespace) -> Tasks:
    """One step of some sequences, by each kind of layer and cell, in inference and in training; on the CPU only."""
    return [
        partial(steps.measure, name, batch, training, options.rounds)
        for name in steps.LAYERS
        for training in (False, True)
        for batch in steps.BATCHES
        if name.removesuffix("Cell").lower() in options.kinds
    ]


def of_families(options: argparse.Namespace) -> Tasks:
    """All workloads, by the layers of other families, in inference and in training."""
    return [
        partial(families.measure, name, workload, training, options.rounds, options.device)
        for name in options.families
        for training in (False, True)
        for workload in WIDTHS
        if options.only in workload.name
    ]


def sampled(options: argparse.Namespace) -> Tasks:
    """Bucketed batches of a million sequences, of several distributions and for several numbers of processes."""
    return [
        partial(sampling.measure, point, options.rounds) for point in sampling.points() if options.only in point.name
    ]


SECTIONS = {
    "layers": layers,
    "steps": single_steps,
    "conversions": between_layouts,
    "growth": growing,
    "families": of_families,
    "sampling": sampled,
}
# For each measurement, the function that draws it, and the suffix of its picture's name.
PICTURES: dict[str, tuple[Callable[[report.Results, Path], None], str]] = {
    "layers": (report.draw, ""),
    "growth": (growth.draw, "-growth"),
    "sampling": (sampling.draw, "-sampling"),
}


def tell(name: str, results: report.Results) -> list[str]:
    """What is printed of a section."""
    if name == "sampling":
        return [sampling.table(results)]
    return [report.summary(name, results), report.table(name, results), report.faster(name, results)]


def draw_pictures(found: dict[str, report.Results], path: Path | None) -> None:
    """Draw all results that there is a picture of, if there is a path."""
    for name, (draw, suffix) in PICTURES.items():
        if path and name in found:
            draw(found[name], path.with_stem(path.stem + suffix))


def main() -> None:
    """Measure, print, write and draw."""
    options = parse_options()
    found: dict[str, report.Results]
    if options.tables:
        read = json.loads(options.tables.read_text())
        found = {name: results for name, results in read.items() if name in SECTIONS}
        for name, results in found.items():
            print(*tell(name, results), sep="\n\n", end="\n\n")
        draw_pictures(found, options.picture)
        return
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    about = {"machine": platform.machine(), "device": device, "torch": torch.__version__, "rounds": options.rounds}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    found = {}
    for name in options.what:
        results = [task() for task in tqdm(SECTIONS[name](options), desc=name, unit="workload")]
        if results:  # `--only` may leave none
            found[name] = results
            print("", *tell(name, results), sep="\n\n")
    if options.json:
        options.json.write_text(json.dumps({"about": about, **found}, indent=1) + "\n")
    draw_pictures(found, options.picture)


if __name__ == "__main__":
    main()
