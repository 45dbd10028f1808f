"""Speed and memory against a plain PyTorch loop: ``python -m tests.benchmarks``. Not part of ``make test``."""
