"""`python -m seqbatch`: print what a bug report about speed needs, such as whether the kernels are in use."""

import platform
from importlib.metadata import version

import torch

from seqbatch import _kernels


def report() -> str:
    """Return the versions, whether the kernels are in use and for which instruction set, and the number of threads."""
    kernels = f"in use, for {_kernels.ISA} on {platform.machine()}" if _kernels.IS_THERE else _kernels.MISSING
    lines = {
        "seqbatch": version("seqbatch"),
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "kernels": kernels,
        "threads": torch.get_num_threads(),
    }
    return "\n".join(f"{name:10}{value}" for name, value in lines.items())


if __name__ == "__main__":
    print(report())
