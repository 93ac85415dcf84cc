"""The benchmark: `tox run -e bench`, or `python tests/bench --help`. Prints ratios, writes them as JSON, draws them."""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from measure import measure
from report import draw, table
from tqdm import tqdm
from workloads import WORKLOADS


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python tests/bench", description=(__doc__ or "").partition(":")[0])
    add = parser.add_argument
    add("--device", default="cpu", choices=["cpu", "cuda"], help="where to run (%(default)s)")
    add("--rounds", type=int, default=9, help="runs of each contender (%(default)s)")
    add("--kinds", nargs="+", default=["lstm", "gru", "rnn"], help="layers (%(default)s)")
    add("--only", default="", metavar="TEXT", help="workloads whose name has this text")
    add("--json", type=Path, metavar="PATH", help="where to write the results")
    add("--picture", type=Path, metavar="PATH", help="where to draw the results")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write and draw."""
    options = parse_options()
    tasks = [
        (workload, kind, training)
        for kind in options.kinds
        for training in (False, True)
        for workload in WORKLOADS
        if options.only in workload.name
    ]
    results: list[dict[str, Any]] = [
        measure(*task, options.rounds, options.device) for task in tqdm(tasks, desc="measuring", unit="workload")
    ]
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    about = {"machine": platform.machine(), "device": device, "torch": torch.__version__, "rounds": options.rounds}
    print(table(results, about))
    if options.json:
        options.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    if options.picture:
        draw(results, options.picture)


if __name__ == "__main__":
    main()
