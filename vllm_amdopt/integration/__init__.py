"""The only layer that imports vLLM: entry points, platforms, backends, and the seams they use."""
