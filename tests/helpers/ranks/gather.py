"""Gathers batches by Lightning Fabric, in one process or by torchrun in more, and prints what came of it."""

import sys
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy

from seqbatch import SequenceBatch

LENGTHS = {"alone": [[2, 3]], "equal": [[2, 2], [2, 2]], "others": [[4, 1], [2, 3]]}


def main(case: str) -> None:
    lengths = LENGTHS[case]
    one = len(lengths) == 1
    strategy = "auto" if one else DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60))
    fabric = Fabric(accelerator="cpu", devices=len(lengths), strategy=strategy)
    fabric.launch()
    mine = lengths[fabric.global_rank]
    batch = SequenceBatch(torch.arange(float(sum(mine)))[:, None], mine)
    try:
        gathered: Any = fabric.all_gather({"x": batch})
    except Exception as error:  # what is raised is what is tested
        print(f"{fabric.global_rank}: {type(error).__name__}: {error}".replace("\n", " "), flush=True)
        raise
    print(f"{fabric.global_rank}: {gathered['x'].lengths} {gathered['x'].values.flatten().tolist()}", flush=True)


main(sys.argv[1])
