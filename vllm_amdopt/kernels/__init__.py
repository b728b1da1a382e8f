"""Triton kernels, one file per algorithm. Knows neither PyTorch nor vLLM: `ops` launches them."""
