"""Who else runs: what torchrun says in the environment; and how a program starts itself once for each device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from headstart.errors import MisconfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The place of this process among those of a job.

    Args:
        rank: Its number among all.
        local_rank: Its number on its machine.
        size: How many there are.
        local_size: How many there are on this machine.
        node: The number of the machine.
    """

    rank: int
    local_rank: int
    size: int
    local_size: int
    node: int

    @property
    def num_nodes(self) -> int:
        """How many machines."""
        return self.size // self.local_size


def from_environment() -> Processes | None:
    """Give what torchrun says in the environment; `None` where it did not start this process.

    Example:
        >>> from_environment() is None
        True
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return None
    size = int(os.environ["WORLD_SIZE"])
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    rank = int(os.environ["RANK"])
    return Processes(
        rank=rank,
        local_rank=int(os.environ["LOCAL_RANK"]),
        size=size,
        local_size=local_size,
        node=int(os.environ.get("GROUP_RANK", rank // local_size)),
    )


def start_program_again(count: int) -> None:
    """Start this program anew in `count` processes by torchrun, wait for them, and end as they end.

    Args:
        count: How many processes.

    Raises:
        MisconfigurationError: If the program cannot be started again: it is no script, no module and no command.
        SystemExit: When they are done.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command += program()
    # Else each process would take all cores for itself.
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    print(
        f"headstart starts this program in {count} processes: {' '.join(command[1:])}",
        file=sys.stderr,
        flush=True,
    )
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    process = subprocess.Popen(command, env=environment)  # noqa: S603 (this very program)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):  # torchrun hands them on, and waits for its processes
            signal.signal(number, lambda number, _: process.send_signal(number))
    sys.exit(process.wait())


def program() -> list[str]:
    """Give what torchrun is to run: this program, with its arguments.

    Raises:
        MisconfigurationError: If it was not started from a file or a module.
    """
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return ["-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    script = getattr(main, "__file__", None)
    if script is None or not Path(script).is_file():
        raise MisconfigurationError(
            "Several processes each run the whole program, and this one cannot be started again: it is a notebook, a prompt or "
            "'python -c'. Write it to a file, or set devices=1."
        )
    return [str(script), *sys.argv[1:]]
