"""A training that is stopped, saved and gone on with in another process: as one never stopped, bit by bit."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import HELPERS, PATHS
from ranks.training import Run, exact

SCRIPT = HELPERS / "ranks" / "resume.py"
# An epoch has seven batches; the run is stopped in the second epoch, and ends in the third.
STOP, END = 10, 17


def go_on_elsewhere(checkpoint: Path, result: Path, workers: int) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), str(checkpoint), str(result), str(workers), str(END - STOP)]
    environment = os.environ | {"PYTHONPATH": PATHS}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = torch.load(result, weights_only=True)
    return loaded


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_as_if_never_stopped(workers: int, tmp_path: Path) -> None:
    straight = Run(workers)
    straight.go_on(END)
    wanted = straight.state()
    stopped = Run(workers)
    stopped.go_on(STOP)
    stopped.save(tmp_path / "checkpoint.pt")
    again = go_on_elsewhere(tmp_path / "checkpoint.pt", tmp_path / "result.pt", workers)
    assert len(again["seen"]) == END
    exact(again.pop("seen"), straight.seen)
    assert (again["loader"]["epoch"], again["loader"]["position"]) == (2, END - 2 * 7)
    assert again.pop("loader") == wanted.pop("loader")
    exact(again, wanted)


def test_the_place_and_the_random_state_both_matter(tmp_path: Path) -> None:
    """So that the test above is not one that anything passes."""
    straight = Run(0)
    straight.go_on(END)
    stopped = Run(0)
    stopped.go_on(STOP)
    stopped.save(tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    begun_anew = {"loader": Run(0).loader.state_dict(), "random": torch.Generator().manual_seed(1).get_state()}
    for name, value in begun_anew.items():
        torch.save(saved | {name: value}, tmp_path / "changed.pt")
        again = Run(0)
        again.load(tmp_path / "changed.pt")
        again.go_on(END - STOP)
        with pytest.raises(AssertionError):
            exact(again.model.state_dict(), straight.model.state_dict())
