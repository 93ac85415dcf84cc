"""Marks every test of this folder, so that `-m "not libraries"` leaves it out where the libraries are not installed."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # Collecting a file imports it, which fails without the libraries; deselecting its tests would come too late.
    return True if config.option.markexpr == "not libraries" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("libraries")
