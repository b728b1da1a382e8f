"""Emulator of AMD GPU machine code (gfx942 MI300X, gfx950 MI355X) on a CPU. See docs/emulator.md.

`emulator.launch` runs Triton kernels, `emulator.run` runs assembly text. Importing this package
imports nothing.
"""
