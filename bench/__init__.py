"""Benchmarks of torchfastnorm against what else computes the same: `python -m bench --help`, protocol in README.md."""
