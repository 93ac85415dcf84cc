"""Runs pip install with the pins of constraints.txt, but without that of torch.

`python packages/install.py -c constraints.txt torch==2.10.0` installs another torch than that of CI. pip itself
refuses a version that differs from a pin.
"""

import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Run pip with the arguments of the command line, and return its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = list(sys.argv[1:])
        for i, argument in enumerate(arguments):
            if Path(argument).name == "constraints.txt":
                lines = Path(argument).read_text().splitlines(keepends=True)
                arguments[i] = str(Path(folder, "constraints.txt"))
                Path(arguments[i]).write_text("".join(line for line in lines if not line.startswith("torch==")))
        return subprocess.run([sys.executable, "-I", "-m", "pip", "install", *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main())
