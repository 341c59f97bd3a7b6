"""Install a CPU build of torch into this environment, or say in one sentence that there is none for this Python.

PyPI's Linux builds of torch are CUDA builds, which bring gigabytes that no test here uses.
"""

import platform
import subprocess
import sys

INDEX = "https://download.pytorch.org/whl/cpu"


def main(version: str) -> int:
    """Install ``torch==VERSION+cpu`` from the wheels that pip is configured to find, or from PyTorch's own index."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--extra-index-url", INDEX, f"torch=={version}+cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip says nothing"]
        sys.stderr.write(
            f"NOT RUN: no CPU build of torch {version} for Python {platform.python_version()} is to be had here, neither from"
            f" the wheels that pip knows nor from {INDEX} (pip: {lines[-1]})\n"
        )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
