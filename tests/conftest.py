"""Every test process: no network, one torch thread, and torchvision importable beside CPU torch."""

from harness import base

base.offline()
base.shim()
