"""The paper's figures at a size for a CPU: ``python -m benchmarks.composing.figures NUMBER --data DATA``."""
