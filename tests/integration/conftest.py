"""One set of vLLM programs and stock answers for the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.offline import Jobs


@pytest.fixture(scope="session")
def jobs() -> Iterator[Jobs]:
    with Jobs() as running:
        yield running
