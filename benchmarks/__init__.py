"""Commands that make the tables, figures and speed comparisons of the documentation."""

import os

# Threads that spin while they wait make two threads on shared cores many times slower; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
