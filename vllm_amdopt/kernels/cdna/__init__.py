"""Gluon kernels for gfx942 and gfx950, chosen there before the portable ones of the same names."""
