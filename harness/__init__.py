"""The four commands, the presets, the plan and the run store of the Beta-KD benchmarking harness."""
