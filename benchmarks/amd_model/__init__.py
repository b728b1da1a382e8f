"""Predicts, from the compiler's assembly, how long our kernels take on MI300X and MI355X.

    python -m benchmarks.amd_model [--gfx gfx942|gfx950] [--kernel NAME] [--shape TEXT]
                                   [--json] [--sensitivity] [--assumptions] [--mca]

Nothing here is measured: no number of this program has been compared with an AMD GPU. What it
rests on is printed by `--assumptions`; what it leaves out is in docs/amd_model.md.
"""
