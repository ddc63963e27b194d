"""What strategies of several processes share: how they meet, deal samples out, reduce and agree; over torch.distributed."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from headstart.deferred import Reuse
from headstart.deferred.shared import new_directory
from headstart.errors import HeadstartError, MisconfigurationError
from headstart.freezing import is_batch_norm
from headstart.loaders import generators_of
from headstart.seed import capture_random_state, restore_random_state
from headstart.strategy.base import Share, Strategy
from headstart.strategy.processes import Processes, from_environment, start_program_again
from headstart.strategy.shares import shared_loader, shares_of

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}


class DistributedStrategy(Strategy):
    """Several processes, a device each. What to do with the weights is for a subclass to say.

    Started by torchrun, a process finds its place in the environment. Otherwise the first run starts the program anew in
    `devices` processes. A step of all processes is the step of one with batches `world_size` times as large: samples are dealt
    out so that each is seen once, and an uneven last batch counts by its samples (for a loss that is a mean over them).

    Args:
        device: Of this process; `None` is what the trainer is told.
        devices: How many processes to start where torchrun has not; likewise.
        shares_loaders: Deal the samples of loaders out; else loaders are what each process makes them.
        checks: At the end of every epoch, compare weights and buffers between processes, and raise if they differ.

    Attributes:
        processes: The place of this process; `None` before torchrun has started it.
    """

    def __init__(
        self,
        device: torch.device | str | None = None,
        *,
        devices: int | None = None,
        shares_loaders: bool = True,
        checks: bool = False,
    ) -> None:
        self.processes: Processes | None = from_environment()
        self._has_device, self._devices = device is not None, devices
        if self.processes is not None:
            self.world_size = self.processes.size
            self.global_rank = self.processes.rank
            self.local_rank = self.processes.local_rank
            self.node_rank = self.processes.node
        else:
            self.world_size = devices or 1
        self.device = self._own(torch.device(device or "cpu"))
        self.checks = checks
        self.shares_loaders = shares_loaders
        self._pending: tuple[Any, Tensor] | None = None
        self._machines: Machines | None = None

    def _own(self, device: torch.device) -> torch.device:
        """Give of all devices of a kind the one that is this process's."""
        return torch.device("cuda", self.local_rank) if device.type == "cuda" else device

    def place(self, device: torch.device, num_devices: int | None) -> None:
        """Take the device, and how many there are on a machine, where nothing was said before."""
        if not self._has_device:
            self.device = self._own(device)
        if self._devices is None and self.processes is None:
            self._devices = self.world_size = num_devices or 1

    # ---- the module

    def connect(self) -> None:
        """Meet the other processes; where torchrun has not started them, start the program anew.

        Raises:
            SystemExit: Where the program was started anew, when it is over.
        """
        if self.processes is None:
            start_program_again(self._devices or 1)
        assert self.processes is not None, "the program was started anew otherwise"
        if not dist.is_initialized():
            is_cuda = self.device.type == "cuda"
            if is_cuda:
                torch.cuda.set_device(self.device)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
                device_id=self.device if is_cuda else None,
                **_where_to_meet(self.processes),
            )
            atexit.register(_disconnect)

    def setup(self, module: nn.Module) -> None:
        """Put the module on its device."""
        module.to(self.device)

    def agree(self, module: nn.Module) -> None:
        """Give all processes the weights and buffers of the first."""
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                first = tensor.detach().clone()
                dist.broadcast(first, src=0)
                # What was the same is not written to, so that it counts as unchanged.
                if not torch.equal(first, tensor):
                    tensor.copy_(first)

    def agree_on_statistics(self, module: nn.Module) -> None:
        """Give all processes the mean of the batch norms' statistics, and the first one's other buffers, of what trains."""
        with torch.no_grad():
            for child in module.modules():
                for buffer in child.buffers(recurse=False) if child.training else ():
                    if is_batch_norm(child) and buffer.is_floating_point():
                        buffer.copy_(self.reduce(buffer))
                    else:
                        dist.broadcast(buffer, src=0)

    # ---- loaders

    def prepare_loader(self, loader: Any, *, shuffle: bool) -> Any:
        """Give this process its share of a loader."""
        if not self.shares_loaders:
            return loader
        return shared_loader(
            loader, rank=self.global_rank, size=self.world_size, in_step=shuffle, order=self._order
        )

    def share_of(self, loader: Any, batch_idx: int) -> Share | None:
        """Give what this process has of a batch."""
        shares = shares_of(loader)
        return None if shares is None else shares.share(batch_idx)

    def _order(self, loader: DataLoader[Any]) -> list[Any]:
        """Give the order in which the first process goes through a loader; its random generators move on, and the others' not."""
        generators = generators_of(loader)
        own = capture_random_state()
        first, states = self.broadcast((own, [each.get_state() for each in generators]))
        if not self.is_global_zero:
            restore_random_state(first)
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
        batches = loader.batch_sampler
        splits = batches is not None and type(batches) is BatchSampler
        order = list(cast("Any", batches.sampler if splits else batches or loader.sampler))  # type: ignore[union-attr]
        if not self.is_global_zero:
            restore_random_state(own)
        return order

    # ---- frozen work

    def share_frozen_work(self, reuse: Reuse) -> None:
        """Let all processes compute a sample's frozen work once: those of a machine by shared files, machines by an exchange."""
        assert self.processes is not None, "they have met"
        if self.processes.num_nodes > 1 and self._machines is None:
            self._machines = Machines(self.processes)
        if not reuse.can_be_shared:
            return
        made = str(new_directory()) if self.local_rank == 0 else ""
        found = self.gather_objects((self.node_rank, made))
        directory = next(path for node, path in found if path and node == self.node_rank)
        reuse.share(directory, is_first=self.local_rank == 0, num_processes=self.processes.local_size)

    def exchange_frozen_work(self, reuse: Reuse) -> None:
        """Bring what each machine has computed to the others."""
        if self._machines is None:
            return
        self.barrier("the pass is over on every machine")
        if self.local_rank == 0:
            reuse.exchange(self._machines)
        self.barrier("what was computed is everywhere")

    # ---- agreement

    def reduce(self, tensor: Tensor, operation: str = "mean") -> Tensor:
        """Give the mean, sum, minimum or maximum over all processes.

        Raises:
            MisconfigurationError: If the operation is another word.
        """
        if operation not in {*_OPERATIONS, "mean"}:
            raise MisconfigurationError(
                f"reduce: operation is {operation!r}; expected 'mean', 'sum', 'min' or 'max'."
            )
        found = tensor.detach().clone()
        dist.all_reduce(found, _OPERATIONS.get(operation, dist.ReduceOp.SUM))
        return found / self.world_size if operation == "mean" else found

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """Give every process's tensors, stacked along a new first dimension; with `sync_grads`, gradients flow back."""
        if isinstance(data, dict):
            return {key: self.all_gather(value, group, sync_grads) for key, value in data.items()}
        if isinstance(data, list | tuple):
            return type(data)(self.all_gather(value, group, sync_grads) for value in data)
        if not isinstance(data, Tensor):
            data = torch.as_tensor(data, device=self.device)
        if sync_grads:
            from torch.distributed.nn.functional import all_gather

            return torch.stack(list(all_gather(data, group)))  # type: ignore[no-untyped-call]
        found = [torch.empty_like(data) for _ in range(dist.get_world_size(group))]
        dist.all_gather(found, data.detach().contiguous(), group=group)
        return torch.stack(found)

    def gather_objects(self, value: Any) -> list[Any]:
        """Give every process's value, in their order."""
        found = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def in_order(self, batches: list[Tensor]) -> Tensor:
        """Give the rows of all processes in the order of the loader that was shared out, row by row."""
        parts = [torch.cat(each) for each in self.gather_objects(batches) if each]
        rows = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
        for rank, part in enumerate(parts):
            rows[rank :: self.world_size] = part
        return rows

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:  # noqa: A002
        """Whether all (or any) of the processes decided so."""
        number = self.reduce(torch.tensor(int(decision)), "min" if all else "max")
        return bool(number.item())

    def any_by_now(self, decisions: list[bool]) -> list[bool]:
        """Whether any process had decided so at its last call, of each decision."""
        found = [False] * len(decisions)
        if self._pending is not None:
            work, numbers = self._pending
            work.wait()
            found = [bool(number) for number in numbers.tolist()]
        numbers = torch.tensor(decisions, dtype=torch.int32)
        self._pending = (dist.all_reduce(numbers, dist.ReduceOp.MAX, async_op=True), numbers)
        return found

    def broadcast(self, value: Any, src: int = 0) -> Any:
        """Give every process the value of process `src`, which can be pickled."""
        found = [value if self.global_rank == src else None]
        dist.broadcast_object_list(found, src=src)
        return found[0]

    def by_first(self, function: Callable[[], Any]) -> Any:
        """Let the first process call a function; give all what it returned, or raise in all what it raised."""
        found = problem = None
        if self.is_global_zero:
            try:
                found = function()
            except (OSError, HeadstartError) as error:  # without it, the others would wait
                problem = error
        found, problem = self.broadcast((found, problem))
        if problem is not None:
            raise problem
        return found

    def barrier(self, name: str | None = None) -> None:
        """Wait until every process is here."""
        dist.barrier()

    def write(self, checkpoint: dict[str, Any], path: str | Path, writer: Callable[..., None]) -> None:
        """Let the first process write a checkpoint."""
        checkpoint = self.whole(checkpoint)
        self.by_first(lambda: writer(checkpoint, path))

    def largest_difference(self, module: nn.Module) -> float:
        """Give the largest difference between two processes in a weight or buffer of the module."""
        return max(map(self._difference_of, [*module.parameters(), *module.buffers()]), default=0.0)

    def _difference_of(self, tensor: Tensor) -> float:
        values = tensor.detach().double()
        if not values.numel():
            return 0.0
        return float((self.reduce(values, "max") - self.reduce(values, "min")).abs().max())

    def teardown(self) -> None:
        """Let go of what was not agreed on to the end: the next run begins without it."""
        self._pending = None


class Machines:
    """The first processes of all machines, as `Reuse.exchange` takes them; all processes make one, at the same moment.

    Args:
        processes: The place of this one.
    """

    def __init__(self, processes: Processes) -> None:
        self._ranks = list(range(0, processes.size, processes.local_size))
        self._group: Any = dist.new_group(self._ranks, backend="gloo")
        self.rank = processes.node
        self.size = len(self._ranks)

    def all_gather_object(self, value: Any) -> list[Any]:
        """Give every machine's value."""
        found = [None] * self.size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def broadcast(self, tensor: Tensor, src: int) -> None:
        """Give every machine the tensor of machine `src`, in place."""
        dist.broadcast(tensor, src=self._ranks[src], group=self._group)


def _where_to_meet(processes: Processes) -> dict[str, Any]:
    """Give the arguments of `init_process_group` that say by which store processes find each other.

    torchrun's own store outlives a restart of the processes, with the addresses of those that are gone in it
    (https://github.com/pytorch/pytorch/issues/135712): on one machine, each attempt gets a part of it to itself.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or processes.num_nodes > 1:
        return {}
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = cast("Any", dist).TCPStore(address, port, processes.size, is_master=False)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return {
        "store": cast("Any", dist).PrefixStore(f"headstart/{attempt}", store),
        "rank": processes.rank,
        "world_size": processes.size,
    }


def _disconnect() -> None:
    if dist.is_initialized():
        # A wrapper that lies in a cycle would keep the group, and with it threads, until the interpreter is gone.
        gc.collect()
        dist.destroy_process_group()
