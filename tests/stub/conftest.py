"""A stub for each test."""

from collections.abc import Iterator

import pytest
from tests.stub import Stub


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A provider that answers well until told otherwise."""
    with Stub() as stub:
        yield stub
