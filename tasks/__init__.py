"""Benchmarks, protocols, scoring and the embedded miniature suite."""
