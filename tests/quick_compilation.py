"""Flags of XLA under which tests compile fast, as most of their time is compilation.

Level 0 halves it. `--xla_cpu_use_fusion_emitters=false` would take off a third of the
rest, but rounds a term by what else the program holds, so that exact tests fail.
"""

XLA_FLAGS = "--xla_backend_optimization_level=0"
