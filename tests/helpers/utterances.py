"""A small data set of samples of every kind, in a file that worker processes can import too."""

import os
from typing import Any, NamedTuple

import attrs
import numpy as np
import torch


class Text(NamedTuple):
    tags: Any
    words: Any


@attrs.frozen
class Utterance:
    signal: Any
    label: Any
    text: Any
    image: Any
    pitch: Any

    def pin_memory(self) -> "Utterance":
        """Pin what can be, as a DataLoader asks for it."""
        return attrs.evolve(self, signal=self.signal.pin_memory(), label=self.label.pin_memory())


class Utterances(torch.utils.data.Dataset[Utterance]):
    """Ten utterances of 0 to 3 steps; one of them, if asked for, of a wrong shape or the end of the process."""

    def __init__(self, wrong: int = -1, last: int = -1) -> None:
        self.wrong, self.last = wrong, last

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Utterance:
        if index == self.last and torch.utils.data.get_worker_info() is not None:
            os._exit(3)
        steps = index % 4
        return Utterance(
            signal=torch.full((steps, 3 if index == self.wrong else 2), float(index)),
            label=index / 3,
            text=Text(torch.full((steps,), index), f"number {index}"),
            image=torch.full((2, 2), index),
            pitch={"f0": np.full(steps, index, np.float32)},
        )
