"""Training: knows a Method, never which one."""
