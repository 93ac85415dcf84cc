"""The benchmark of sampling runs, on fewer sequences, and finds bucketed batches to be the better ones."""

from pathlib import Path

import sampling


def test_it_runs(tmp_path: Path) -> None:
    points = [point for point in sampling.points() if point.world_size == 8]
    results = [sampling.measure(point, 1, sequences=20_000) for point in points]
    for result in results:
        assert result["fill"]["bucketed"] > 1.5 * result["fill"]["random"]
        cost = sampling.COSTS[result["limit"]]
        assert result["balance"]["bucketed"][cost] > result["balance"]["random"][cost]
    assert sampling.table(results).count("\n") == 2 * 4 + 1
    sampling.draw(results, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
