"""Goes on with a saved training in a process of its own: `resume.py checkpoint result workers batches`."""

import sys
from pathlib import Path

from ranks.training import Run


def main() -> None:
    run = Run(int(sys.argv[3]))
    run.load(Path(sys.argv[1]))
    run.go_on(int(sys.argv[4]))
    run.save(Path(sys.argv[2]))


if __name__ == "__main__":
    main()
