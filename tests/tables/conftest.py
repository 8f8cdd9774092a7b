"""A feature extractor that takes no time."""

import pytest

from tests.fid.projection import Projection


@pytest.fixture
def projection() -> Projection:
    return Projection()
