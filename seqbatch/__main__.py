"""`python -m seqbatch`: print what a bug report needs, such as versions and whether the kernels are in use."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from seqbatch import _kernels

# The beginnings of the names of environment variables that change speed or the choice of kernels.
_VARIABLES = ("SEQBATCH_", "OMP_", "GOMP_", "KMP_", "MKL_")


def report() -> str:
    """Return the versions, the machine, whether the kernels are in use, and what sets the number of threads."""
    try:
        installed = version("seqbatch")
    except PackageNotFoundError:
        installed = "not installed; this is a checkout"
    capability = torch.backends.cpu.get_cpu_capability()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    kernels = f"in use, for {_kernels.ISA} on {platform.machine()}" if _kernels.IS_THERE else _kernels.MISSING
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)]
    lines = {
        "seqbatch": installed,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores, {capability} in torch",
        "GPU": gpu,
        "kernels": kernels,
        "threads": torch.get_num_threads(),
        "variables": " ".join(variables) or "none",
    }
    return "\n".join(f"{name:10}{value}" for name, value in lines.items())


if __name__ == "__main__":
    print(report())
