"""The tests; a package so that `tests.serving` and `tests.models` mean these and nobody else's."""
