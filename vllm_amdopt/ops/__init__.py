"""The operations: what each computes (plain PyTorch), which implementations exist, and which one applies where.

Importing this package, or any module in it, needs PyTorch alone: Triton is imported by the launch itself.
"""
