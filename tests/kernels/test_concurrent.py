"""The kernels in several Python threads at once, and in a child after `fork`, where the threads of OpenMP are gone."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from kernel_calls import run_lstm
from torch import Tensor, nn

import seqbatch

HELPERS = Path(__file__).parents[1] / "helpers"
THREADS, TIMES = 8, 10
FORK = """
import os, signal
import torch
from torch import nn
from kernel_calls import run_lstm
from seqbatch import SequenceBatch

batch = SequenceBatch(torch.randn(20000, 64), [5000] * 4)  # enough for several threads
padded = batch.to_padded(batch_first=True)
lstm, values, lengths = nn.LSTM(5, 64), torch.randn(300, 5), [30] * 10
wanted = run_lstm(lstm, values, lengths, 4)
child = os.fork()
if not child:
    signal.alarm(100)  # ends it if it waits for threads that are not there
    found = run_lstm(lstm, values, lengths, 4), batch.to_padded(batch_first=True)
    torch.set_num_threads(1)  # because PyTorch itself waits for threads that are not there
    os._exit(0 if torch.equal(found[0], wanted) and torch.equal(found[1], padded) else 1)
_, status = os.waitpid(child, 0)
print(status, torch.equal(run_lstm(lstm, values, lengths, 4), wanted))
"""


def test_a_child_of_fork_does_not_wait_for_threads_that_are_gone() -> None:
    path = os.pathsep.join([str(HELPERS), str(Path(seqbatch.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "passive"}
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        FORK,
    ]  # newer Python warns of fork with threads
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout == "0 True\n", done.stderr


def test_several_python_threads_at_once() -> None:
    lstms = [nn.LSTM(5, 16 + i) for i in range(THREADS)]
    lengths = [[1 + (i + j) % 9 for j in range(20)] for i in range(THREADS)]
    values = [torch.randn(sum(each), 5) for each in lengths]
    together = threading.Barrier(THREADS)

    def run(i: int) -> list[Tensor]:
        together.wait(timeout=60)
        return [run_lstm(lstms[i], values[i], lengths[i], 2) for _ in range(TIMES)]

    with ThreadPoolExecutor(THREADS) as pool:
        found = [*pool.map(run, range(THREADS))]
    for i in range(THREADS):
        wanted = run_lstm(lstms[i], values[i], lengths[i], 1)
        assert all(torch.equal(each, wanted) for each in found[i])
