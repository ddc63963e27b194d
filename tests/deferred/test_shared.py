"""Many processes: what one has computed all find, on a machine through files that they map, between machines by an exchange."""

import multiprocessing
import os
import signal
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from headstart.deferred import Reuse, real_values
from headstart.deferred.columns import Column, Layout
from headstart.deferred.exchange import exchange
from headstart.deferred.shared import new_directory
from headstart.deferred.store import Store
from headstart.errors import MisconfigurationError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks")

# Values may have been computed in other batches: float32 sums in another order.
TOLERANCE = 1e-5
SAMPLES = 60


class Shares(BatchSampler):
    """The batches of one of several processes: in every pass other samples, and no sample in two processes."""

    def __init__(self, rank, size, batch_size=4):
        self.rank, self.size, self.batch_size, self.epoch = rank, size, batch_size, 0

    is_foreseeable = True

    def __iter__(self):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.epoch))
        yield from (each.tolist() for each in torch.split(order[self.rank :: self.size], self.batch_size))

    def __len__(self):
        return len(range(self.rank, SAMPLES, self.size * self.batch_size))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh()).requires_grad_(False).eval()


def points():
    return TensorDataset(torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(0)))


def in_processes(size, function, *args, may_die=()):
    """Give what `function(rank, *args)` gives in each of `size` processes; `None` for one that was killed."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(size)]

    def run(rank):
        torch.set_num_threads(1)
        try:
            pipes[rank][1].send((function(rank, *args), None))
        except BaseException:
            pipes[rank][1].send((None, traceback.format_exc()))

    processes = [context.Process(target=run, args=(rank,)) for rank in range(size)]
    for each in processes:
        each.start()
    for _, sender in pipes:
        sender.close()
    found = []
    try:
        for rank, (receiver, _) in enumerate(pipes):
            try:
                assert receiver.poll(300), f"process {rank} does not answer"
                result, error = receiver.recv()
                assert error is None, error
            except EOFError:
                assert rank in may_die, f"process {rank} died"
                result = None
            found.append(result)
        for each in processes:
            each.join(60)
    finally:
        for each in processes:  # one that waits for another that failed would wait for ever
            each.kill()
    return found


def job(size, folder, **settings):
    """Give what `train` gives in each process of a job."""
    together = multiprocessing.get_context("fork").Barrier(size, timeout=60)
    may_die = settings.get("die_after", ())[:1]
    shared = new_directory(folder)
    found = in_processes(size, lambda rank: train(rank, size, shared, together, **settings), may_die=may_die)
    assert may_die or not shared.exists()
    return found


def train(
    rank,
    size,
    shared,
    together,
    *,
    data=None,
    epochs=3,
    setting="auto",
    workers=0,
    die_after=None,
    **settings,
):
    """Go through this process's share; give how many samples were computed, and what was said."""
    net, data, remarks = Net(), data or points(), []
    reuse = Reuse(net, setting, min_gain=0, say=remarks.append, **settings)
    reuse.share(shared, is_first=rank == 0, num_processes=size)
    sampler = Shares(rank, size)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    for epoch in range(epochs):
        sampler.epoch = epoch
        expected = iter(sampler)
        for number, (x,) in enumerate(reuse.batches(loader)):
            features = real_values(net.backbone(x))
            plain = net.backbone(torch.stack([data[each][0] for each in next(expected)]))
            torch.testing.assert_close(features, plain, rtol=0, atol=TOLERANCE)
            if die_after == (rank, number + 1):
                together.wait()
                os.kill(os.getpid(), signal.SIGKILL)
        if die_after is None or epoch == 0:  # whom one dies beside has not gone through all before it
            together.wait()  # as the reduction of gradients holds processes together
    num_computed = reuse.report().num_computed
    reuse.close()
    return num_computed, remarks


# ---- on a machine


@pytest.mark.parametrize("setting", ["auto", "exact"])
@pytest.mark.parametrize("size", [2, 3])
def test_every_sample_is_computed_once_in_all_processes(tmp_path, size, setting):
    found = job(size, tmp_path, setting=setting)
    assert sum(num_computed for num_computed, _ in found) == SAMPLES
    assert all(num_computed > 0 for num_computed, _ in found)
    assert any("stored on disk, for all processes" in line for line in found[0][1])


@pytest.mark.slow
def test_under_distributed_data_parallel_the_losses_are_the_plain_ones_and_a_sample_is_computed_once(
    tmp_path,
):
    """Nothing but the reduction of gradients holds the processes together."""
    shared = new_directory(tmp_path)

    def run(rank, is_plain):
        Gloo(rank, 2, tmp_path / f"rendezvous {is_plain}")
        net, data = Net(), points()
        net.add_module("head", nn.Linear(8, 1))
        net.forward = lambda x: net.head(net.backbone(x))
        wrapped = DistributedDataParallel(net)
        optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
        sampler = DistributedSampler(data, 2, rank)
        loader = DataLoader(data, batch_size=4, sampler=sampler)
        reuse, losses = Reuse(net, min_gain=0, say=lambda line: None), []
        reuse.share(shared, is_first=rank == 0, num_processes=2)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            for (x,) in loader if is_plain else reuse.batches(loader):
                optimizer.zero_grad()
                loss = (wrapped(x) - 1).square().mean()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        reuse.close()
        torch.distributed.destroy_process_group()
        return losses, reuse.report().num_computed

    plain, reused = in_processes(2, run, True), in_processes(2, run, False)
    for (losses, _), (expected, _) in zip(reused, plain, strict=True):
        assert losses == pytest.approx(expected, rel=1e-4)  # small losses, of features that differ by 1e-5
    assert sum(num_computed for _, num_computed in reused) == SAMPLES


def test_processes_that_read_in_workers_share_and_clean_up_too(tmp_path):
    """The workers are forked, and with them what the locks hang on."""
    assert sum(num_computed for num_computed, _ in job(2, tmp_path, workers=1, epochs=2)) == SAMPLES


def test_a_second_job_finds_what_the_first_has_kept_with_other_numbers_of_processes(tmp_path):
    kept = tmp_path / "kept"
    assert sum(num_computed for num_computed, _ in job(2, tmp_path, directory=kept)) == SAMPLES
    assert [path.suffix for path in sorted(kept.glob("*.*")) if path.name != ".lock"] == [".json", ".npy"]
    # The first batch of each process is computed in every run, and compared with what was kept.
    assert [num_computed for num_computed, _ in job(3, tmp_path, directory=kept)] == [4, 4, 4]
    assert [num_computed for num_computed, _ in job(1, tmp_path, directory=kept)] == [4]


@pytest.mark.parametrize("rank", [0, 1])
def test_after_a_process_died_the_others_go_on_and_the_next_job_is_right(tmp_path, rank):
    kept = tmp_path / "kept"
    found = job(2, tmp_path, directory=kept, die_after=(rank, 3))
    assert found[rank] is None
    survivor = found[1 - rank][0]
    assert SAMPLES // 2 <= survivor <= SAMPLES - 4  # of the other it had the first batch at least
    rest = sum(num_computed for num_computed, _ in job(2, tmp_path, directory=kept))
    if rank == 0:
        assert rest == SAMPLES  # only the first process saves
    else:
        assert rest <= SAMPLES - survivor - 4 + 2 * 4  # the first batches are computed in any case
    assert sum(num_computed for num_computed, _ in job(2, tmp_path, directory=kept)) == 2 * 4


def test_what_was_kept_in_part_is_carried_on(tmp_path):
    settings = {"directory": tmp_path / "kept", "epochs": 1, "setting": "exact"}
    job(2, tmp_path, die_after=(1, 1), **settings)
    begun = job(2, tmp_path, **settings)
    # Of the one that had lived, the first batch; of the other, all or all but the batch that it had put.
    assert [num_computed for num_computed, _ in begun] == [4, SAMPLES // 2]
    assert [num_computed for num_computed, _ in job(2, tmp_path, **settings)] == [4, 4]


def test_the_first_batches_of_processes_that_begin_at_once(tmp_path):
    """Twenty times: both make the column at the same moment, and have it in common."""
    together = multiprocessing.get_context("fork").Barrier(2, timeout=60)

    def race(rank):
        for number in range(20):
            with Store(on_note=print) as store:
                store.share(tmp_path / str(number), is_first=rank == 0, num_processes=2)
                together.wait()
                column = store.column("key", num_samples=1000, shape=(3,), dtype=torch.float32)
                own = torch.arange(rank, 1000, 2)
                column.put(own, own.float().unsqueeze(1).expand(-1, 3))
                together.wait()
                assert column.is_complete
                assert torch.equal(column.take(torch.arange(1000))[:, 2], torch.arange(1000.0))
                together.wait()

    in_processes(2, race)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("num_samples", "width"), [(3000, 256), (200, 50_000)])
def test_a_row_is_there_before_it_is_said_to_be_there(tmp_path, num_samples, width):
    """One process puts rows, the other takes each as soon as it finds it."""
    entered = multiprocessing.get_context("fork").Barrier(2, timeout=60)

    def run(rank):
        with Store() as store:
            store.share(tmp_path / "shared", is_first=rank == 0)
            column = store.column("key", num_samples=num_samples, shape=(width,), dtype=torch.float32)
            entered.wait()  # the rows go with the last process that has entered
            for each in torch.arange(num_samples).split(1):
                if rank == 0:
                    column.put(each, each.float().expand(1, width))
                while column.missing(each) is not None:
                    pass
                assert bool((column.take(each) == each).all())

    in_processes(2, run)


@pytest.fixture(scope="module", autouse=True)
def _everything_is_imported():
    """What the first values import, each process would import again."""
    net = Net()
    for (x,) in Reuse(net, min_gain=0, say=lambda line: None).batches(DataLoader(points())):
        real_values(net.backbone(x))


@pytest.fixture
def pair(tmp_path):
    """Two stores that share a directory, as two processes would."""
    notes = []
    settings = {"memory_limit": 10_000, "disk_limit": 10_000, "on_note": notes.append}
    stores = [Store(**settings), Store(**{**settings, "memory_limit": 1, "disk_limit": 2})]
    for number, store in enumerate(stores):
        store.share(tmp_path / "shared", is_first=number == 0, num_processes=2)
    yield *stores, notes
    for store in stores:
        store.close()
    assert not (tmp_path / "shared").exists()


def small(store, key="key", num_samples=20, **more):
    return store.column(key, num_samples=num_samples, shape=(3,), dtype=torch.float32, **more)


def test_the_rows_go_with_the_last_process_that_uses_them(pair, tmp_path):
    one, other, _ = pair
    first, second = small(one), small(other)
    first.put(torch.arange(20), torch.ones(20, 3))
    one.drop(first)
    again = small(one)
    assert again.is_complete
    other.drop(second)
    assert again.is_complete
    one.drop(again)
    assert not list((tmp_path / "shared").glob("*.column"))
    assert small(other).num_filled == 0


def test_limits_are_those_of_the_machine_and_of_whoever_came_first(pair):
    one, other, notes = pair
    for store in (one, other):
        assert small(store, "shared", num_samples=500).is_shared  # 6000 bytes of the 10,000 of disk_limit
        assert not small(store, "~own", num_samples=300).is_shared  # twice 3600 of those of memory_limit
        assert small(store, "~second", num_samples=150).place == "disk"  # twice 1800
        assert small(store, "~third", num_samples=150) is None
        assert "150 samples need 1.8 kB in each of 2 processes, but 2.8 kB are left of the" in store.refusal
        assert small(store, "too much", num_samples=400) is None
    assert all(
        "4.8 kB for 'too much' are not shared by the processes, 400 bytes are left" in each for each in notes
    )


def test_where_one_process_has_no_room_it_computes_alone_and_the_values_are_right(pair):
    one, other, _ = pair
    small(other, "only here", num_samples=700)
    shared, alone = small(one, num_samples=200), small(other, num_samples=200)
    assert (shared.is_shared, alone.is_shared) == (True, True)  # what another has made room for is used
    assert small(other, "more", num_samples=300).is_shared is False
    assert small(one, "more", num_samples=300).is_shared is True


def test_whether_values_are_worth_storing_is_decided_once(pair):
    one, other, _ = pair
    first, second, private = small(one), small(other), small(other, "~own")
    assert one.agree(first, answer=False) is False
    assert other.agree(second, answer=True) is False
    assert other.agree(private, answer=True) is True


def test_what_cannot_be_shared_is_computed_once_in_each_process_and_it_is_said(tmp_path):
    class Unnamed(torch.utils.data.Dataset):
        """A data set that holds something of unknown content."""

        def __init__(self):
            self.points, self.lock = points(), threading.Lock()

        def __len__(self):
            return SAMPLES

        def __getitem__(self, index):
            return self.points[index]

    found = job(2, tmp_path, data=Unnamed())
    assert SAMPLES < sum(num_computed for num_computed, _ in found) <= 2 * SAMPLES
    assert any(
        "computed once in each process, and not in all: its network, its data" in line for line in found[0][1]
    )


def test_values_that_follow_the_padding_are_not_shared(tmp_path):
    net, remarks = nn.Linear(1, 7).requires_grad_(False).eval(), []
    data = [torch.ones(2 + number % 3, 1) for number in range(12)]
    reuse = Reuse(net, min_gain=0, say=remarks.append)
    reuse.share(tmp_path / "shared", is_first=True, num_processes=2)
    collate = nn.utils.rnn.pad_sequence
    for x in reuse.batches(
        DataLoader(data, batch_size=4, collate_fn=lambda batch: collate(batch, batch_first=True))
    ):
        real_values(net(x))
    reuse.close()
    assert any("not in all: its values depend on how batches are padded" in line for line in remarks)


def test_share_after_the_first_batches_is_refused(tmp_path):
    reuse = Reuse(say=lambda line: None)
    next(iter(reuse.batches(DataLoader(points()))))
    with pytest.raises(
        MisconfigurationError, match="came after the first batches; expected one call, before"
    ):
        reuse.share(tmp_path, is_first=True)
    reuse = Reuse()
    reuse.share(tmp_path / "shared", is_first=True)
    with pytest.raises(MisconfigurationError, match="came after another share"):
        reuse.share(tmp_path / "shared", is_first=True)
    reuse.close()


def test_the_directory_of_a_job_that_was_killed_is_removed_by_the_next_and_no_other(tmp_path):
    other, untouched = new_directory(tmp_path), new_directory(tmp_path)
    store = Store()
    store.share(other, is_first=True)
    killed = new_directory(tmp_path)

    def run(rank):
        store = Store()
        store.share(killed, is_first=rank == 0)
        small(store)
        os.kill(os.getpid(), signal.SIGKILL)

    in_processes(2, run, may_die=(0, 1))
    assert list(killed.glob("*.column"))
    mine = new_directory(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([other, untouched, mine])
    store.close()
    assert not other.exists()


# ---- between machines


class Gloo:
    """The first processes of the machines, for `exchange`."""

    def __init__(self, rank, size, file):
        torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=size)
        self.rank, self.size = rank, size

    def all_gather_object(self, value):
        found = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found

    def broadcast(self, tensor, src):
        torch.distributed.broadcast(tensor, src)


@pytest.mark.slow
def test_machines_find_what_others_have_computed_after_an_exchange(tmp_path):
    def run(rank):
        group, net, data = Gloo(rank, 2, tmp_path / "rendezvous"), Net(), points()
        reuse = Reuse(net, min_gain=0, say=lambda line: None)
        reuse.share(tmp_path / f"machine{rank}", is_first=True)
        sampler, counts = Shares(rank, 2), []
        loader = DataLoader(data, batch_sampler=sampler)
        for epoch in range(3):
            sampler.epoch = epoch
            for indices, (x,) in zip(list(sampler), reuse.batches(loader), strict=True):
                plain = net.backbone(data.tensors[0][indices])
                torch.testing.assert_close(real_values(net.backbone(x)), plain, rtol=0, atol=TOLERANCE)
            counts.append((reuse.report().num_computed, reuse.exchange(group)))
        reuse.close()
        torch.distributed.destroy_process_group()
        return counts

    half = SAMPLES // 2
    # Features alone: the points themselves are read anew.
    assert in_processes(2, run) == [[(half, half), (half, 0), (half, 0)]] * 2


class Threads:
    """The same among threads; notes how much is sent at a time."""

    def __init__(self, rank, size, common):
        self.rank, self.size, self.common, self.sent = rank, size, common, []

    def all_gather_object(self, value):
        self.common["values"][self.rank] = value
        self.common["barrier"].wait()
        found = list(self.common["values"])
        self.common["barrier"].wait()
        return found

    def broadcast(self, tensor, src):
        assert tensor.dtype == torch.uint8
        self.sent.append(len(tensor))
        tensor.copy_(self.all_gather_object(tensor)[src])


def exchanged(columns, chunk):
    """Let one thread for each element of `columns` take part; give what was received, and the sizes of what was sent."""
    size = len(columns)
    common = {"values": [None] * size, "barrier": threading.Barrier(size, timeout=30)}
    groups = [Threads(rank, size, common) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        received = list(
            pool.map(lambda rank: exchange(columns[rank], groups[rank], chunk=chunk), range(size))
        )
    return received, groups[0].sent


@pytest.mark.parametrize("chunk", [1, 100, 10**6])
@pytest.mark.parametrize(
    "layout",
    [
        Layout(50, (), torch.bool),
        Layout(50, (3,), torch.bfloat16),
        Layout(50, (2, 3, 4), torch.float32, channels_last=True),
    ],
)
def test_an_exchange_gives_all_what_any_has_in_pieces_of_bounded_size(layout, chunk):
    values = torch.randn(50, *layout.shape, generator=torch.Generator().manual_seed(0)).to(layout.dtype)
    columns = [Column(layout, torch.zeros(layout.rows, dtype=layout.dtype)) for _ in range(3)]
    parts = [torch.arange(0, 30), torch.arange(20, 40), torch.tensor([], dtype=torch.int64)]
    for column, ids in zip(columns, parts, strict=True):
        column.put(ids, values[ids])
    received, sent = exchanged([{"key": column} for column in columns], chunk)
    assert received == [10, 20, 40]
    row_bytes = layout.nbytes // 50
    assert max(sent) <= max(chunk, row_bytes)
    assert sum(sent) == 40 * row_bytes  # each row once
    for column in columns:
        assert column.num_filled == 40
        assert torch.equal(column.take(torch.arange(40)), values[:40])
    assert exchanged([{"key": column} for column in columns], chunk) == ([0, 0, 0], [])


def test_an_exchange_leaves_out_what_a_machine_lacks_or_has_in_another_layout():
    def column(width, ids):
        column = Column(Layout(10, (width,), torch.float32), torch.zeros(10, width))
        column.put(ids, torch.ones(len(ids), width))
        return column

    some, more = torch.arange(3), torch.arange(5)
    one = {"both": column(2, some), "only here": column(2, some), "unlike": column(2, some)}
    other = {"both": column(2, more), "unlike": column(3, more)}
    assert exchanged([one, other], 1000)[0] == [2, 0]
    assert [each.num_filled for each in (*one.values(), *other.values())] == [5, 3, 3, 5, 5]


def test_without_share_nothing_is_exchanged():
    with Store() as store:
        small(store).put(torch.arange(20), torch.ones(20, 3))
        group = Threads(0, 1, {"values": [None], "barrier": threading.Barrier(1)})
        assert store.exchange(group) == 0
