"""Scripts that measure and show; run them as `python -m benchmarks.NAME` from a checkout."""
