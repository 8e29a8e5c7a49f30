"""Every example of the package's docstrings runs, and says what it says."""

import doctest
import importlib
import pkgutil

import pytest

import evomerge

NAMES = sorted(
    module.name
    for module in pkgutil.walk_packages(evomerge.__path__, "evomerge.")
    if not module.name.endswith(
        ("__main__", "ray_pool", "ray_cluster")
    )  # Ray's is run by test_ray.py
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", NAMES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # examples may look for runs/ where they stand
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=FLAGS)
    assert result.failed == 0
