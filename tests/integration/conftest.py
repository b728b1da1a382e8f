"""One set of vLLM programs and stock answers, and one process that forks, for the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.forked_programs import ForkedPrograms
from tests.integration.offline import Jobs


@pytest.fixture(scope="session")
def jobs() -> Iterator[Jobs]:
    with Jobs() as running:
        yield running


@pytest.fixture(scope="session")
def forked_programs() -> Iterator[ForkedPrograms]:
    with ForkedPrograms() as running:
        yield running
