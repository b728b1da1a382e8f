"""The operations: what each computes (plain PyTorch), who implements it, and what applies where.

Importing this package, or any module in it, needs PyTorch alone; the launches import Triton.
"""
