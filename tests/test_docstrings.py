"""Runs the example in every docstring of the package."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from torch import nn

import seqbatch

MODULES = [module.name for module in pkgutil.walk_packages(seqbatch.__path__, "seqbatch.")]
NAMES = {name: getattr(seqbatch, name) for name in seqbatch.__all__} | {"torch": torch, "nn": nn}


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is")  # what PyTorch's exporter does itself
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.graphs] * ("onnx" in name)) for name in MODULES]
)
def test_examples_show_what_happens(name: str) -> None:
    torch.manual_seed(0)
    outcome = doctest.testmod(importlib.import_module(name), extraglobs=NAMES)
    assert outcome.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) > 30
