"""Flags of XLA under which tests compile fast, for most of their time is compilation.

Level 0 halves it; the older code generator of fusions takes off a third of the rest
(a step of ACTION++ on four devices: 20 s with the newer one, 13 s without).
"""

XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
