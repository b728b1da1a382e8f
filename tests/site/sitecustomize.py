"""Runs at the start of every Python that the tests start: garbage is collected rarely.

A quarter of what `import vllm` takes is the collector looking at modules that are there to stay
(18.2 s, or 14.9 s of processor time so, measured on a virtual AMD EPYC), and the tests start some
fifty vLLM processes.
"""

import gc

gc.set_threshold(100_000, 50, 100)
