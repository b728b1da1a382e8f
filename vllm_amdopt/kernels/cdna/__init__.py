"""Gluon kernels for CDNA (gfx942, gfx950): layouts by hand, chosen over the portable forms there."""
