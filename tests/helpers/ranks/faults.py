"""What may go wrong in one of two processes: started by torchrun with the name of a fault, which it never survives."""

import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from ranks.training import LENGTHS, loader_of, make_model, train
from torch import distributed
from torch.nn.parallel import DistributedDataParallel


def batches(fault: str) -> Iterator[Any]:
    """Yield batches without end; the second process dies or sleeps after two, if the fault says so."""
    while True:
        for i, batch in enumerate(loader_of(LENGTHS, wrong=5 if fault == "wrong" else -1, batch_size=3)):
            yield batch
            if distributed.get_rank() == 1 and i == 1:
                if fault == "dies":
                    os._exit(7)
                if fault == "late":
                    time.sleep(300)


def main() -> None:
    # The other process waits this long, and then fails.
    distributed.init_process_group("gloo", timeout=timedelta(seconds=3))
    model = DistributedDataParallel(make_model("lstm"))
    train(model, batches(sys.argv[1]), torch.optim.SGD(model.parameters(), 0.1))


if __name__ == "__main__":
    main()
