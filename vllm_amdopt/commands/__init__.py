"""The commands behind `vllm-amdopt` that look at the machine; imported by `cli` when asked for.

Each has `add_arguments(parser)` and `run(options, environment)`, which prints and returns the exit
code. No command reads os.environ, imports torch or vLLM, or starts a GPU.
"""
