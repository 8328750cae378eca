"""Soak tests are end-to-end tests that go on: a short form in `make test`, all of it in `make soak`."""

import random

import pytest

from scale import LONG, SEED

pytest_plugins = ["common"]


def pytest_report_header(config):
    return f"soak: {'long' if LONG else 'short'} form, PUCK_SEED={SEED}"


def pytest_collection_modifyitems(config, items):
    if not LONG:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture
def chance(request) -> random.Random:
    """What a test decides by, the same for the same seed."""
    return random.Random(f"{SEED} {request.node.name}")
