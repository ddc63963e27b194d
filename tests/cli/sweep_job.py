"""A sweep in a process of its own, which may be killed; forked from one that has imported everything."""

import os
import sys

import headstart.backbones.timm_models
import headstart.callbacks
import headstart.cli.auto
import headstart.cli.sweep
import headstart.cli.sweep_folder
import headstart.data.folder
import headstart.sweep.trial
import headstart.tasks  # noqa: F401


def run(arguments, log):
    """Sweep, what is printed in a file; the process ends with the exit code."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(headstart.cli.sweep.run(arguments))
