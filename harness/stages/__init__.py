"""What the stages do, one file per kind; each has a ``STAGE_VERSION`` and functions called in a worker.

Nothing heavy is imported at module level: the plan reads the versions in the main process, which never needs torch.
"""
