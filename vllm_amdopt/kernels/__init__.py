"""Triton kernels, one file per algorithm. Nothing here knows PyTorch or vLLM; `vllm_amdopt.ops` launches them."""
