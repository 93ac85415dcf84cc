"""Print the rooms of the package by floor, with the rooms that each imports, as the table of architecture.md.

`python docs/house.py` prints the table, and `python docs/house.py --write` replaces it in the page.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "seqbatch"
PAGE = DOCS / "architecture.md"
# The table is between these lines of the page.
BEGIN, END = "<!-- python docs/house.py --write -->\n", "<!-- end of the table -->\n"


def imported_rooms(path: Path) -> Iterator[str]:
    """Yield the rooms of the package that a file imports, such as `_ops`."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == PACKAGE.name:
                room = rest.split(".")[0]
                # Other names are those of `__init__.py`.
                yield room if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").exists() else "__init__"


def imports() -> dict[str, set[str]]:
    """Return the rooms, which are the folders and files at the top of the package, and the rooms that each imports."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        found.setdefault(room, set()).update(imported_rooms(path))
    return {room: others - {room} for room, others in found.items()}


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Return the floor of each room: one above the highest room that it imports."""
    found: dict[str, int] = {}
    for room in TopologicalSorter(graph).static_order():
        found[room] = 1 + max((found[other] for other in graph[room]), default=0)
    return found


def table() -> str:
    """Return the table, from the highest floor to the lowest."""
    graph = imports()
    floor = floors(graph)

    lines = ["| floor | room | imports |", "| --- | --- | --- |"]
    for room in sorted(graph, key=lambda room: (-floor[room], room)):
        below = sorted(graph[room], key=lambda other: (-floor[other], other))
        lines.append(f"| {floor[room]} | `{room}` | {', '.join(f'`{other}`' for other in below)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, or write it to the page."""
    if sys.argv[1:] == ["--write"]:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
