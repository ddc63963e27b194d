"""What a program may do to a network, its data or its batches: the numbers stay those of the plain loop, or a line says why."""

import copy
import io
import pickle
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from headstart.deferred import Reuse, Views, real_values
from headstart.deferred.tensor import Deferred
from headstart.errors import MisconfigurationError

# Stored values were computed in other batches: float32 sums in another order, rounded at 2**-24 a term.
TOLERANCE = 1e-5
SCRIPT = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
# What NumPy says of every tensor of this version of torch.
COPY = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def points(count=20, width=6):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(count, width, generator=generator), torch.randint(3, (count,), generator=generator)
    )


def frozen(module):
    return module.requires_grad_(False).eval()


class Net(nn.Module):
    def __init__(self, backbone=None):
        super().__init__()
        self.backbone = frozen(
            backbone or nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8))
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.backbone(x))


def new_reuse(setting="exact", **settings):
    return Reuse(setting=setting, **{"min_gain": 0, "say": lambda line: None, **settings})


def numbers(value):
    if isinstance(value, list | tuple):
        return [number for each in value for number in numbers(each)]
    return value.detach().double().flatten().tolist() if isinstance(value, torch.Tensor) else [float(value)]


def compare(program, *, looked_up=None, says=None, exact=True):
    """Run `program(batches)` plainly, and with both settings of `Reuse`; the numbers and the random state must agree.

    Args:
        program: Takes what stands in the place of `iter` before a loader; gives numbers.
        looked_up: Whether values must have been looked up (or must not); `None` for either.
        says: What one of the lines must contain.
        exact: Whether `"exact"` gives the same bits.
    """
    for setting in ("exact", "auto"):
        reuse = new_reuse(setting)
        plain, found = outcome(program, iter), outcome(program, reuse.batches)
        remarks = reuse.report().remarks
        if setting == "exact" and exact:
            assert found[0] == plain[0], remarks
        else:
            assert found[0] == pytest.approx(plain[0], rel=TOLERANCE, abs=TOLERANCE, nan_ok=True), remarks
        assert found[1:] == plain[1:], "the random state afterwards"
        if looked_up is not None:
            assert (reuse.report().num_looked_up > 0) == looked_up, remarks
        if says is not None:
            assert sum(says in line for line in remarks) == 1, remarks
    return reuse


def outcome(program, batches):
    """What a program gives, and one number from each generator afterwards."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    return numbers(program(batches)), torch.rand(2).tolist(), random.random(), np.random.rand()


def training(make=Net, *, dataset=None, epochs=4, between=None, step=None, each=None, **loading):
    """A program that trains the head: the losses and weights."""

    def program(batches):
        torch.manual_seed(1)
        model = make()
        data = points() if dataset is None else dataset()
        loader = DataLoader(data, **{"batch_size": 8, **loading})
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        losses = []
        for epoch in range(epochs):
            for x, y in batches(loader):
                if each is not None:
                    each(model)
                loss = functional.cross_entropy(model(x), y) if step is None else step(model, x, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            if between is not None:
                between(model, epoch, loader)
        return [losses, *model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]

    return program


# ---- what is the program's own


def test_what_a_program_does_to_the_tensors_that_it_gets_stays_in_that_step():
    def step(model, x, y):
        first = model.backbone(x)
        first.mul_(2)
        first[:, 0] = 0
        y.add_(1).remainder_(3)
        return functional.cross_entropy(model.head(first + model.backbone(x)), y)

    compare(training(step=step), looked_up=True)


def test_after_its_first_batches_a_program_gets_the_values_themselves():
    kinds = []

    def step(model, x, y):
        features = model.backbone(x)
        kinds.append((type(x), type(features), type(y)))
        return functional.cross_entropy(model.head(features), y)

    training(step=step, epochs=2)(new_reuse().batches)
    assert kinds[:4] == [(Deferred, Deferred, Deferred)] * 4
    assert kinds[4:] == [(Deferred, Tensor, Tensor)] * 2


def test_an_input_that_was_used_as_it_is_goes_through_a_module_that_is_frozen_later():
    class Late(Net):
        def __init__(self):
            super().__init__()
            self.late = nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 8))

        def forward(self, x):
            return self.head(self.backbone(x[0]) + self.late(x[1]))

    class Pairs(Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            x, y = points()[index]
            return (x, x + 1), y

    def between(model, epoch, loader):
        if epoch == 3:
            frozen(model.late)

    reuse = compare(training(Late, dataset=Pairs, between=between, epochs=8), looked_up=True)
    assert len(reuse.report().stored) == 2


# ---- changed weights


def load(model, epoch, loader):
    torch.manual_seed(epoch)
    model.backbone.load_state_dict(
        {name: torch.rand_like(each, dtype=torch.float) for name, each in model.backbone.state_dict().items()}
    )


def edit(model, epoch, loader):
    if epoch == 1:
        with torch.no_grad():
            model.backbone[0].weight[0, 0] += 1


def edit_data(model, epoch, loader):
    if epoch == 1:
        model.backbone[0].weight.data[0, 0] += 1


def edit_numpy(model, epoch, loader):
    if epoch == 1:
        model.backbone[3].bias.numpy()[1] += 1


def transpose(model, epoch, loader):
    if epoch == 1:
        model.backbone[3].weight.data = model.backbone[3].weight.data.T


def swap(model, epoch, loader):
    """An average of weights is put in their place after every second epoch."""
    if epoch == 1:
        for each in model.backbone.parameters():
            each.data = each.data * 0.5


def replace_module(model, epoch, loader):
    if epoch == 1:
        torch.manual_seed(3)
        model.backbone[3] = frozen(nn.Linear(8, 8))


def replace_function(model, epoch, loader):
    if epoch == 1:
        model.backbone[2].forward = torch.sigmoid


def buffer(model, epoch, loader):
    if epoch == 1:
        model.backbone[1].running_mean += 0.5


@pytest.mark.parametrize(
    "between", [load, edit, edit_data, edit_numpy, transpose, swap, replace_module, replace_function, buffer]
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_weights_that_change_between_epochs_are_noticed(between, shuffle):
    compare(
        training(between=between, shuffle=shuffle),
        looked_up=True if between is not load else None,
        exact=not shuffle,
    )


def test_a_part_that_thaws_is_trained():
    def thaw(model, epoch, loader):
        if epoch == 1:
            model.backbone[3].requires_grad_(True)
            model.extra = torch.optim.SGD(model.backbone[3].parameters(), lr=0.1)

    def step(model, x, y):
        if hasattr(model, "extra"):
            model.extra.step()
            model.extra.zero_grad()
        return functional.cross_entropy(model(x), y)

    compare(training(between=thaw, step=step), looked_up=True)


def test_a_part_that_freezes_is_stored_from_then_on():
    class Both(Net):
        def __init__(self):
            super().__init__()
            self.backbone.requires_grad_(True).train()

    def freeze(model, epoch, loader):
        frozen(model.backbone)

    reuse = compare(training(Both, between=freeze), looked_up=True)
    assert reuse.report().num_computed == 20


@pytest.mark.parametrize("value", [2.0, "twice", (2.0,), [2.0], {"by": 2.0}, torch.tensor(2.0)], ids=str)
def test_an_attribute_of_a_frozen_module_that_changes_is_noticed(value):
    class Scaled(nn.Linear):
        scale = 1.0

        def forward(self, x):
            scale = self.scale
            if isinstance(scale, dict):
                scale = scale["by"]
            if isinstance(scale, list | tuple):
                (scale,) = scale
            return super().forward(x) * (3.0 if isinstance(scale, str) else scale)

    def change(model, epoch, loader):
        if epoch == 1:
            model.backbone.scale = value

    def change_inside(model, epoch, loader):
        if epoch == 2 and isinstance(value, list | dict):
            model.backbone.scale.clear() if isinstance(value, list) else None
            model.backbone.scale.append(5.0) if isinstance(value, list) else model.backbone.scale.update(
                by=5.0
            )
        change(model, epoch, loader)

    def program(batches):
        if isinstance(value, list):
            value[:] = [2.0]
        if isinstance(value, dict):
            value["by"] = 2.0
        return training(lambda: Net(Scaled(6, 8)), between=change_inside)(batches)

    compare(program, looked_up=True)


TEMPERATURE = {"value": 1.0}


@pytest.mark.parametrize("where", ["class", "global", "function"])
def test_what_a_frozen_module_takes_from_its_class_or_from_globals_is_noticed(where):
    class Scaled(nn.Linear):
        scale = 1.0

        def forward(self, x):
            return super().forward(x) * self.scale / TEMPERATURE["value"]

    def change(model, epoch, loader):
        if epoch == 1:
            if where == "class":
                Scaled.scale = 2.0
            elif where == "global":
                TEMPERATURE["value"] = 2.0
            else:
                Scaled.forward = lambda self, x: nn.Linear.forward(self, x) * 3

    original = Scaled.forward

    def program(batches):
        Scaled.scale, TEMPERATURE["value"], Scaled.forward = 1.0, 1.0, original
        return training(lambda: Net(Scaled(6, 8)), between=change)(batches)

    compare(program, looked_up=True)


def test_an_attribute_that_is_set_before_every_batch_is_noticed():
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * self.scale

    def set_scale(model):
        model.backbone.scale = torch.rand(()).item()

    compare(training(lambda: Net(Scaled(6, 8)), each=set_scale, epochs=3), says="keeps changing")


@pytest.mark.parametrize("how", ["in place", "data", "data anew"])
def test_an_averaged_teacher_that_moves_at_every_step_is_noticed(how):
    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.online = nn.Linear(6, 8)
            self.teacher = frozen(copy.deepcopy(self.online))
            self.head = nn.Linear(8, 3)

    def step(model, x, y):
        with torch.no_grad():
            target = model.teacher(x)
        features = model.online(x)
        loss = (features - target).square().mean() + functional.cross_entropy(model.head(features), y)
        for mine, theirs in zip(model.teacher.parameters(), model.online.parameters(), strict=True):
            if how == "in place":
                with torch.no_grad():
                    mine.lerp_(theirs, 0.3)
            elif how == "data":
                mine.data.mul_(0.7).add_(theirs.data, alpha=0.3)
            else:
                mine.data = mine.data * 0.7 + theirs.data * 0.3
        return loss

    compare(training(Student, step=step), says="keeps changing")


def test_a_network_that_is_evaluated_before_and_after_its_step_gives_two_results():
    def program(batches):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        found, loader = [], DataLoader(points(), batch_size=8)

        def evaluate(x):
            model.eval()
            with torch.no_grad():
                return model(x)

        for _ in range(3):
            for x, y in batches(loader):
                before = evaluate(x).sum().item()
                model.train()
                loss = functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                found += [before, evaluate(x).sum().item(), loss.item()]
                model.train()
        return found

    compare(program)


def test_a_value_that_is_used_after_train_was_called_is_that_of_evaluation_mode():
    def program(batches):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)
        ).requires_grad_(False)
        found, loader = [], DataLoader(points(), batch_size=8)
        for _ in range(3):
            for x, _ in batches(loader):
                model.eval()
                output = model(x)
                model.train()
                found.append(output.sum().item())
                assert model.training
        return [*found, *model.buffers()]

    compare(program, looked_up=True)


def test_a_value_that_is_used_only_after_the_weights_have_changed_raises():
    model, loader = Net(), DataLoader(points(), batch_size=8)
    reuse = new_reuse()
    next(iter(reuse.batches(loader)))[0].sum()
    for index, (x, _) in enumerate(reuse.batches(loader)):
        features = model.backbone(x) * 2
        if index == 0:
            features.sum().item()
            continue
        with torch.no_grad():
            model.backbone[0].weight.mul_(2)
        with pytest.raises(MisconfigurationError, match="has changed since it was called"):
            features.sum().item()
        break


# ---- changed data


class Scaling:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return x * self.factor


class Transformed(Dataset):
    def __init__(self, transform, count=20):
        self.data, self.transform = points(count), transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        return self.transform(x), y


def test_another_transform_behind_the_same_loader_is_noticed():
    def change(model, epoch, loader):
        if epoch == 1:
            loader.dataset.transform = Scaling(3.0)
        if epoch == 2:
            loader.dataset.transform.factor = 4.0

    compare(training(dataset=lambda: Transformed(Scaling(1.0)), between=change, epochs=5), looked_up=True)


def test_other_data_behind_the_same_loader_is_noticed():
    def change(model, epoch, loader):
        if epoch == 1:
            loader.dataset.tensors[0].mul_(2)
        if epoch == 2:
            loader.dataset.tensors = (loader.dataset.tensors[0] + 1, loader.dataset.tensors[1])

    compare(training(between=change, epochs=5), looked_up=True)


def test_autocast_and_number_format_are_told_apart():
    def program(batches):
        torch.manual_seed(1)
        model, loader = Net(), DataLoader(points(), batch_size=8)
        found = []
        for dtype in (None, torch.bfloat16, torch.float16, None):
            for x, _ in batches(loader):
                with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                    features = model.backbone(x)
                found += [
                    features.sum().item(),
                    features.to(torch.bfloat16).sum().item(),
                    features.double().sum().item(),
                ]
                found.append(features.dtype.itemsize)
        return found

    torch.manual_seed(0)
    plain = program(iter)
    assert program(new_reuse().batches) == plain


# ---- data that cannot be stored


class Noisy(Dataset):
    """The noise comes from one of the generators of the field, the third sample's alone where it is `rare`."""

    def __init__(self, draw, *, rare=False):
        self.data, self.draw, self.rare = points(), draw, rare

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        return (x if self.rare and index != 2 else x + float(self.draw())), y


GENERATORS = {"python": random.random, "numpy": np.random.rand, "torch": lambda: torch.rand(())}


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_data_set_that_draws_random_numbers_is_read_as_ever(kind):
    reuse = compare(
        training(dataset=lambda: Noisy(GENERATORS[kind])),
        looked_up=False,
        says="reading a sample draws random numbers",
    )
    (line,) = reuse.report().remarks
    assert "Noisy" in line and "Views" in line


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_data_set_of_which_one_sample_is_random_is_read_as_ever(kind, batch_size):
    """Only the samples of the first batches are read twice; the others are found out when they are read."""
    make = lambda: nn.Sequential(Net(), nn.Dropout(0.3), nn.Linear(3, 3))
    program = training(make, dataset=lambda: Noisy(GENERATORS[kind], rare=True), batch_size=batch_size)
    compare(program, says="draws random numbers")


@pytest.mark.parametrize("make", [lambda: np.random.default_rng(0).random, lambda: random.Random(0).random,
                                  lambda: np.random.RandomState(0).rand])  # fmt: skip
def test_a_data_set_with_a_generator_of_its_own_is_left_where_it_was(make):
    class Own(Noisy):
        def __init__(self):
            super().__init__(make())
            self.generator = self.draw.__self__

    compare(training(dataset=Own), looked_up=False, says="draws random numbers")


def test_a_data_set_that_counts_is_read_as_ever():
    class Counting(Noisy):
        def __init__(self):
            super().__init__(lambda: 0)
            self.count = 0

        def __getitem__(self, index):
            self.count += 1
            x, y = super().__getitem__(index)
            return x + self.count, y

    compare(training(dataset=Counting), looked_up=False, says="two different ones (Counting)")


def test_a_data_set_that_asks_the_system_for_random_bytes_is_read_as_ever():
    reuse = new_reuse()
    system = random.SystemRandom()
    list(reuse.batches(DataLoader(Noisy(system.random), batch_size=8)))
    (line,) = reuse.report().remarks
    assert "two different ones (Noisy)" in line


class Stream(IterableDataset):
    def __iter__(self):
        yield from points()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DataLoader(Stream(), batch_size=8), "Stream is an iterable data set"),
        (lambda: list(DataLoader(points(), batch_size=8)), "a list does not say which samples"),
        (lambda: DataLoader(points(), batch_size=None), "batch_size=None"),
        (lambda: DataLoader([(torch.ones(6), "a"), (torch.ones(6), "b")], batch_size=2), "a batch holds str"),
        (lambda: DataLoader(points(), batch_size=8, collate_fn=lambda s: (*torch.utils.data.default_collate(s), len(s))),
         "a batch holds int"),
    ],
)  # fmt: skip
def test_a_loader_that_cannot_be_deferred_is_handed_through(make, says):
    reuse = new_reuse(model=Net()) if False else Reuse(Net(), "exact", say=lambda line: None)
    for _ in range(2):
        for one, other in zip(reuse.batches(make()), make(), strict=True):
            for mine, theirs in zip(one, other, strict=True):
                assert type(mine) is type(theirs)
                assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
    assert sum(says in line for line in reuse.report().remarks) == 1


def test_a_data_set_that_only_workers_can_read_is_handed_through():
    class Closed(Dataset):
        data = None

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return self.data[index]

    dataset = Closed()
    loader = DataLoader(dataset, batch_size=4, num_workers=1, worker_init_fn=_open)
    reuse = new_reuse()
    assert [x.tolist() for x in reuse.batches(loader)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert "raises TypeError" in reuse.report().remarks[0]


def _open(worker):
    torch.utils.data.get_worker_info().dataset.data = torch.arange(8)


def test_samples_of_different_shapes_raise():
    data = [torch.ones(3), torch.ones(3), torch.ones(4)]
    model = frozen(nn.Conv1d(1, 1, 2))
    with pytest.raises(MisconfigurationError, match="different shapes cannot be deferred"):
        for x in new_reuse().batches(DataLoader(data, batch_size=1)):
            model(x[:, None]).sum().item()


def test_batches_that_differ_in_their_parts_raise():
    def collate(samples):
        x = torch.stack([x for x, _ in samples])
        return {"x": x, "y": x} if x[0, 0] < 3 else {"x": x, "z": x}

    data = [(torch.full((2,), float(n)), n) for n in range(5)]
    model = frozen(nn.Linear(2, 2))
    with pytest.raises(MisconfigurationError, match="differ in their parts"):
        for batch in new_reuse().batches(DataLoader(data, batch_size=1, collate_fn=collate)):
            model(batch["x"]).sum().item()


# ---- frozen modules that do more than compute


def test_a_frozen_norm_in_training_mode_is_named_and_moves_its_statistics():
    class Train(Net):
        def __init__(self):
            super().__init__()
            self.backbone[1].train()

    compare(training(Train), says="1 (BatchNorm1d) is in training mode; call its eval()")


def test_a_frozen_backbone_in_training_mode_is_named_once():
    class Train(Net):
        def __init__(self):
            super().__init__(
                nn.Sequential(
                    nn.Linear(6, 8), nn.Sequential(nn.Dropout(), nn.Linear(8, 8)), nn.BatchNorm1d(8)
                )
            )
            self.backbone.train()

    compare(training(Train), says="is in training mode", looked_up=False)


@pytest.mark.parametrize("where", ["backbone", "backbone.0"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_hooks_on_frozen_modules_see_every_batch(where, kind):
    class Hooked(Net):
        def __init__(self):
            super().__init__()
            self.seen = []
            module = self.get_submodule(where)
            getattr(module, f"register_{kind}_hook")(
                lambda module, args, *output: self.seen.append(float(args[0].sum()))
            )

        def parameters(self, recurse=True):
            return super().parameters(recurse)

    def program(batches):
        made = []

        def make():
            made.append(Hooked())
            return made[0]

        found = training(make)(batches)
        return [found, made[0].seen]

    compare(program, says="has hooks, which must see every batch")


def test_a_hook_on_all_modules_sees_every_call():
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(type(module))
    )
    try:
        counts = []
        for batches in (iter, new_reuse().batches):
            seen.clear()
            training()(batches)
            counts.append(len(seen))
    finally:
        handle.remove()
    assert counts[0] == counts[1]


class InPlace(nn.Linear):
    def forward(self, x):
        x.mul_(0.5)
        return super().forward(x)


class HandsThrough(nn.Linear):
    def forward(self, x):
        return {"x": x, "y": super().forward(x)}


class Random(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.rand(()) + random.random() + np.random.rand()


class Counts(nn.Linear):
    count = 0

    def forward(self, x):
        self.count += 1
        return super().forward(x) + self.count


class Appends(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.found = []

    def forward(self, x):
        self.found.append(1.0)
        return super().forward(x) * len(self.found)


class Buffer(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return super().forward(x) + self.count


class NewBuffer(Buffer):
    def forward(self, x):
        self.count = self.count + 1
        return nn.Linear.forward(self, x) + self.count


class GivesText(nn.Linear):
    def forward(self, x):
        return {"y": super().forward(x), "name": object()}


class GivesScalar(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y, y.mean()


class LazyCache(nn.Linear):
    cache = None

    def forward(self, x):
        if self.cache is None:
            self.cache = torch.arange(8.0)
        return super().forward(x) + self.cache


class TakesGradients(nn.Linear):
    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(super().forward(x).square().sum(), x)
        return super().forward(x.detach()) + gradient.sum(1, keepdim=True)


class NeedsGradients(TakesGradients):
    def forward(self, x):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.Linear.forward(self, x).square().sum(), x)
        return nn.Linear.forward(self, x.detach()) + gradient.sum(1, keepdim=True)


class Squeezes(nn.Linear):
    def forward(self, x):
        return super().forward(x.squeeze())


class Dictionary(dict):
    def __init__(self, y, extra):
        super().__init__(y=y)
        self.extra = extra


class GivesOwnDictionary(nn.Linear):
    def forward(self, x):
        return Dictionary(super().forward(x), extra=3)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (InPlace, "it changes its input in place"),
        (HandsThrough, "it hands its input through"),
        (Random, "it draws random numbers"),
        (Counts, None),
        (Appends, None),
        (Buffer, None),
        (NewBuffer, None),
        (GivesText, "it gives a object"),
        (GivesScalar, "it gives a tensor of the shape ()"),
        (LazyCache, None),
        (TakesGradients, None),
        (NeedsGradients, None),
        (Squeezes, None),
        (GivesOwnDictionary, "it gives a Dictionary"),
    ],
)
def test_a_frozen_module_that_does_more_than_compute_does_it_in_every_batch(kind, says):
    def step(model, x, y):
        output = model.backbone(x)
        if isinstance(output, dict):
            extra = getattr(output, "extra", 0)
            output = output["y"] + extra + (output["x"].sum(1, keepdim=True) if "x" in output else 0)
        if isinstance(output, tuple):
            output = output[0] + output[1]
        return functional.cross_entropy(model.head(output), y) + x.sum() / 100

    compare(training(lambda: Net(kind(6, 8)), step=step), says=says)


def test_a_lazy_cache_costs_no_reuse():
    compare(training(lambda: Net(LazyCache(6, 8))), looked_up=True)


def test_a_trainable_tensor_that_a_frozen_module_hides_is_trained():
    class Prompted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + self.prompt[0]

    class Hidden(Net):
        def __init__(self):
            super().__init__(Prompted(6, 8))
            self.prompt = nn.Parameter(torch.zeros(8))
            self.backbone.prompt = [self.prompt]

    compare(training(Hidden), looked_up=False, says="it reads a tensor that trains")

    def program(batches):  # found while nothing asks for gradients, as in a sanity check
        torch.manual_seed(1)
        model, loader = Hidden(), DataLoader(points(), batch_size=8)
        with torch.no_grad():
            for x, _ in batches(loader):
                model(x).sum().item()
        model.prompt.grad = None
        for x, y in batches(loader):
            functional.cross_entropy(model(x), y).backward()
        return model.prompt.grad

    compare(program)


def test_a_hidden_teacher_that_moves_is_noticed():
    class Hides(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x) + self.other[0](x)

    class Hidden(Net):
        def __init__(self):
            super().__init__(Hides(6, 8))
            self.teacher = frozen(nn.Linear(6, 8))
            self.backbone.other = [self.teacher]

    def move(model):
        model.teacher.weight.data.mul_(0.9)

    compare(training(Hidden, each=move), says="The work of Hides is done in every epoch: it keeps changing")


def test_a_module_that_is_shared_between_a_frozen_and_a_trainable_place_is_trained():
    class Shared(Net):
        def __init__(self):
            super().__init__(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 8)))
            self.shared = self.backbone[0].requires_grad_(True)

        def forward(self, x):
            return self.head(self.backbone(self.shared(x)))

    compare(training(Shared), looked_up=False)


def test_a_frozen_module_that_is_called_twice_in_a_forward_gives_two_values():
    class Twice(Net):
        def __init__(self):
            super().__init__(nn.Linear(6, 6))
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.backbone(self.backbone(x)) + self.backbone(x * 2))

    compare(training(Twice), looked_up=True)


def test_row_arguments_that_change_after_the_call_are_those_of_the_call():
    class Masked(nn.Linear):
        def forward(self, x, mask):
            return super().forward(x * mask)

    def step(model, x, y):
        mask = torch.ones(len(x), 1)
        mask[0] = 0
        features = model.backbone(x, mask)
        mask.zero_()
        return functional.cross_entropy(model.head(features), y)

    compare(training(lambda: Net(Masked(6, 8)), step=step), looked_up=True)


def test_an_argument_that_differs_in_every_batch_fills_no_memory():
    reuse = new_reuse()
    model = Net()
    loader = DataLoader(points(80), batch_size=2)
    for _ in range(5):
        for x, _ in reuse.batches(loader):
            lam = random.random()
            found = model.backbone(x * lam)
            assert torch.allclose(real_values(found), model.backbone(real_values(x) * lam), atol=1e-5)
    assert len(reuse._recorder._calls) < 300


# ---- wrappers


@SCRIPT
def test_a_scripted_frozen_module_inside_a_trainable_one():
    class Scripted(Net):
        def __init__(self):
            super().__init__()
            self.backbone = torch.jit.script(self.backbone)

    compare(training(Scripted), looked_up=True)


@SCRIPT
def test_a_scripted_network_with_a_frozen_part():
    compare(training(lambda: torch.jit.script(Net())), says="compiled or scripted as a whole")


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_around_frozen_and_trainable_parts(use_reentrant):
    def step(model, x, y):
        features = checkpoint(model.backbone, x, use_reentrant=use_reentrant)
        return functional.cross_entropy(checkpoint(model.head, features, use_reentrant=False), y)

    def around_all(model, x, y):
        return functional.cross_entropy(checkpoint(model, x, use_reentrant=False), y)

    compare(training(step=step))
    compare(training(step=around_all))


class Quantize(torch.autograd.Function):
    """Straight through: its output does not show that it depends on what trains."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x)
        return torch.round(x / scale.detach()) * scale.detach()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient, (gradient * x).sum()


def test_a_custom_autograd_function_gets_real_tensors_and_its_gradient():
    class Quantized(Net):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            return self.head(Quantize.apply(self.backbone(x), self.scale))

    compare(training(Quantized), looked_up=True)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["network", "network, in place", "backbone"])
def test_compiled_networks(what):
    def make():
        model = Net()
        if what == "network, in place":
            model.compile(backend="eager")
        elif what == "backbone":
            model.backbone = torch.compile(model.backbone, backend="eager")
        else:
            model = torch.compile(model, backend="eager")
        return model

    is_part = what == "backbone"
    compare(training(make), looked_up=is_part, says=None if is_part else "compiled or scripted as a whole")


# ---- gradients with respect to inputs


def saliency(model, x, y):
    x.requires_grad_()
    loss = functional.cross_entropy(model(x), y)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    return loss + gradient.square().sum()


def saliency_by_attribute(model, x, y):
    x.requires_grad = True
    loss = functional.cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    return loss + x.grad.square().sum()


def features_gradient(model, x, y):
    features = model.backbone(x).requires_grad_()
    loss = functional.cross_entropy(model.head(features), y)
    (gradient,) = torch.autograd.grad(loss, features, create_graph=True)
    return loss + gradient.square().sum()


def of_a_copy(model, x, y):
    copied = x.clone().detach().requires_grad_(True)
    loss = functional.cross_entropy(model(copied), y)
    (gradient,) = torch.autograd.grad(loss, copied, create_graph=True)
    return loss + gradient.square().sum()


@pytest.mark.parametrize("step", [saliency, saliency_by_attribute, features_gradient, of_a_copy])
def test_gradients_with_respect_to_inputs_are_computed_plainly_and_said_once(step):
    compare(training(step=step), says="Gradients with respect to a batch")


# ---- samplers and loaders


class Growing(Sampler):
    """A batch sampler of batches of 1, 2, 3, ... samples."""

    def __len__(self):
        return 5

    def __iter__(self):
        start = 0
        for size in range(1, 6):
            yield list(range(start, start + size))
            start += size


class Drawing(Sampler):
    """Draws each sample when it is asked for, from the generator that training uses; gives NumPy's numbers."""

    def __len__(self):
        return 20

    def __iter__(self):
        for _ in range(20):
            yield np.int64(torch.randint(20, ()).item())


class Pairs(Sampler):
    def __len__(self):
        return 4

    def __iter__(self):
        for start in range(0, 20, 5):
            yield [(index, 2.0) for index in range(start, start + 5)]


class ByPair(Transformed):
    def __getitem__(self, pair):
        index, factor = pair if isinstance(pair, tuple) else (pair, 1.0)
        x, y = self.data[index]
        return x * factor, y


class WithDropout(Net):
    def forward(self, x):
        return self.head(functional.dropout(self.backbone(x), 0.3, self.training))


@pytest.mark.parametrize(
    "make",
    [
        lambda data: {"sampler": WeightedRandomSampler([1.0] * 10 + [5.0] * 10, 30), "batch_size": 7},
        lambda data: {"sampler": WeightedRandomSampler([1.0] * 20, 20), "batch_size": 20},
        lambda data: {"batch_sampler": Growing()},
        lambda data: {"batch_sampler": BatchSampler(Drawing(), 6, drop_last=True)},
        lambda data: {"sampler": DistributedSampler(data, num_replicas=2, rank=1, seed=3), "batch_size": 4},
        lambda data: {"sampler": torch.utils.data.SubsetRandomSampler(range(3, 15)), "batch_size": 5},
        lambda data: {"shuffle": True, "batch_size": 8, "generator": torch.Generator().manual_seed(5)},
        lambda data: {"shuffle": True, "batch_size": 1},
        lambda data: {"batch_size": 1},
        lambda data: {"batch_size": 50},
        lambda data: {"batch_size": 8, "drop_last": True, "shuffle": True},
        lambda data: {"sampler": [0, 0, 0, 5, 5, 1], "batch_size": 3},
        lambda data: {"sampler": [-1, -2, 3, 4], "batch_size": 2},
    ],
)
def test_any_sampler_gives_its_own_batches(make):
    data = points()
    program = (
        training(WithDropout, dataset=lambda: data, epochs=3, **{"batch_size": 8, **make(data)})
        if ("batch_sampler" not in make(data))
        else None
    )

    def with_batch_sampler(batches):
        torch.manual_seed(1)
        model = WithDropout()
        found = []
        for _ in range(3):
            for x, y in batches(DataLoader(data, **make(data))):
                found.append(functional.cross_entropy(model(x), y).item())
        return found

    def fresh(batches):  # samplers and generators have a state of their own
        return training(WithDropout, dataset=lambda: data, epochs=3, **make(data))(batches)

    compare(with_batch_sampler if program is None else fresh, exact=False)


def test_a_sampler_that_gives_no_numbers_is_handed_through():
    def program(batches):
        torch.manual_seed(1)
        model, data = Net(), ByPair(None)
        return [
            model(x).sum().item()
            for _ in range(2)
            for x, _ in batches(DataLoader(data, batch_sampler=Pairs()))
        ]

    compare(program, looked_up=False, says="the sampler gives")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_tiny_data_sets(count):
    compare(training(dataset=lambda: points(count), epochs=3))


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_draw_as_ever(persistent):
    def program(batches):
        torch.manual_seed(1)
        model = WithDropout()
        loader = DataLoader(
            points(), batch_sampler=BatchSampler(Drawing(), 4, drop_last=False), num_workers=2,
            persistent_workers=persistent,
        )  # fmt: skip
        found = []
        for _ in range(3):
            for x, y in batches(loader):
                found.append(functional.cross_entropy(model(x), y).item())
        return found

    compare(program, looked_up=True, exact=False)


# ---- loops


def test_a_loop_that_ends_early_can_begin_again():
    def program(batches):
        torch.manual_seed(1)
        model, loader = Net(), DataLoader(points(), batch_size=4, shuffle=True)
        found = []
        for stop in (1, 3, 9, 2, 9):
            for index, (x, y) in enumerate(batches(loader)):
                found.append(functional.cross_entropy(model(x), y).item())
                if index == stop:
                    break
        try:
            for x, _ in batches(loader):
                raise KeyError
        except KeyError:
            pass
        found += [model(x).sum().item() for x, _ in batches(loader)]
        return found

    compare(program, looked_up=True, exact=False)
    assert nn.Module.__call__ is nn.Module._wrapped_call_impl


def test_nested_loops_over_the_same_data():
    def program(batches):
        torch.manual_seed(1)
        model, data = WithDropout(), points()
        train, validation = DataLoader(data, batch_size=4, shuffle=True), DataLoader(data, batch_size=5)
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        found = []
        for _ in range(3):
            for index, (x, y) in enumerate(batches(train)):
                loss = functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                found.append(loss.item())
                if index % 3 == 1:
                    model.head.eval()
                    with torch.no_grad():
                        found += [
                            functional.cross_entropy(model(a), b).item() for a, b in batches(validation)
                        ]
                    model.head.train()
        return found

    compare(program, looked_up=True, exact=False)


def test_two_loaders_side_by_side():
    def program(batches):
        torch.manual_seed(1)
        model = Net()
        one, other = DataLoader(points(16), batch_size=4), DataLoader(points(12), batch_size=3)
        found = []
        for _ in range(3):
            for (a, _), (b, _) in zip(batches(one), batches(other), strict=True):
                found += [
                    model.backbone(torch.cat([a, b])).sum().item(),
                    model(a).sum().item() - model(b).sum().item(),
                ]
        return found

    compare(program)


def test_two_reuse_objects_at_once():
    model, data = Net(), points()
    first, second = new_reuse(), new_reuse()
    loader = DataLoader(data, batch_size=5)
    for _ in range(3):
        for (x, _), (z, _), (p, _) in zip(first.batches(loader), second.batches(loader), loader, strict=True):
            assert torch.equal(model(x), model(p))
            assert torch.equal(model.backbone(z) + model.backbone(x), 2 * model.backbone(p))
    assert first.report().num_looked_up > 0 and second.report().num_looked_up > 0


def test_views_are_told_apart():
    def program(batches):
        torch.manual_seed(1)
        views = Views(Noisy(GENERATORS["torch"]), 2)
        model, loader, found = Net(), DataLoader(views, batch_size=8, shuffle=True), []
        for epoch in range(5):
            views.set_epoch(epoch)
            found += [functional.cross_entropy(model(x), y).item() for x, y in batches(loader)]
        return found

    compare(program, looked_up=True, exact=False)


# ---- what is done to a deferred tensor


def deferred(model=None, batch_size=8):
    """A deferred value and its plain one."""
    torch.manual_seed(1)
    model = model or Net()
    loader = DataLoader(points(), batch_size=batch_size)
    reuse = new_reuse()
    for (x, _), (plain, _) in zip(reuse.batches(loader), loader, strict=True):
        yield model.backbone(x), model.backbone(plain)


USES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "nested deepcopy": lambda x: copy.deepcopy({"a": [x, x]})["a"][1],
    "numpy": lambda x: torch.from_numpy(x.numpy()),
    "asarray": lambda x: torch.from_numpy(np.asarray(x)),
    "array": lambda x: torch.from_numpy(np.array(x) * 2),
    "repr": lambda x: torch.tensor([len(repr(x))]),
    "str": lambda x: torch.tensor([len(f"{x}") + len(f"{x[0, 0]:.3f}")]),
    "index": lambda x: x[2] * x[0, 1],
    "mask": lambda x: x[x > 0],
    "rows": lambda x: x[torch.tensor([1, 0])],
    "iteration": lambda x: torch.stack([each.sum() for each in x]),
    "unpacking": lambda x: (lambda first, *rest: first * len(rest))(*x),
    "bool": lambda x: torch.tensor([bool((x > -100).all()), bool(x[0, 0] > 0)]),
    "tolist": lambda x: torch.tensor(x.tolist()),
    "float": lambda x: torch.tensor(float(x[1, 1]) + int(x[0, 0])),
    "in": lambda x: torch.tensor([x[0, 0] in x, 77.0 in x]),
    "as_tensor": lambda x: torch.as_tensor(x) * 2,
    "tensor": lambda x: torch.tensor(x.tolist()),
    "Parameter": lambda x: nn.Parameter(x) * 2,
    "list": lambda x: torch.stack(list(x)),
    "dict key": lambda x: {x: torch.ones(1)}[x],
    "same": lambda x: torch.tensor([x is x, torch.is_tensor(x), isinstance(x, torch.Tensor)]),
    "vmap": lambda x: torch.vmap(lambda row: row.sum())(x),
    "func.grad": lambda x: torch.func.grad(lambda z: z.square().sum())(x),
    "foreach": lambda x: torch._foreach_mul([x, x], 2.0)[1],
    "ops": lambda x: torch.ops.aten.relu.default(x),
    "stride": lambda x: torch.tensor([*x.stride(), x.is_contiguous(), x.storage_offset()]),
    "linalg": lambda x: torch.linalg.norm(x),
    "sort": lambda x: x.sort(0).values,
    "unique": lambda x: torch.unique(x.round()),
    "multinomial": lambda x: torch.zeros(1) + x.exp().multinomial(1).ndim,
    "data loader": lambda x: next(iter(DataLoader(TensorDataset(x), batch_size=3)))[0],
    "to": lambda x: x.to("cpu", torch.float64) + x.cpu().double(),
    "type": lambda x: x.type(torch.float16).float() + x.type_as(torch.ones(1).double()),
    "out": lambda x: torch.add(x, 1, out=torch.empty_like(x)),
    "new": lambda x: x.new_ones(3) + x.new_tensor([1.0, 2, 3]) + torch.zeros_like(x).sum(),
    "half": lambda x: x.T @ x,
    "jit": lambda x: torch.jit.script(torch.nn.Tanh())(x),
}


@COPY
@SCRIPT
@pytest.mark.parametrize("name", USES)
def test_a_deferred_tensor_can_be_used_as_any_tensor(name):
    for _ in range(2):
        for x, plain in deferred():
            assert type(x) is Deferred
            found, expected = USES[name](x), USES[name](plain)
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)


def test_a_deferred_tensor_can_be_saved():
    for x, plain in deferred():
        file = io.BytesIO()
        torch.save({"x": x}, file)
        file.seek(0)
        found = torch.load(file, weights_only=True)["x"]
        assert type(found) is torch.Tensor
        assert torch.equal(found, plain)


def add_through_numpy(x):
    x.numpy()[:] += random.random()


def add_through_data(x):
    x.data.add_(random.random())


def add_through_foreach(x):
    torch._foreach_add_([x], random.random())


def add_through_ops(x):
    torch.ops.aten.add_.Tensor(x, torch.tensor(random.random()))


def add_through_unfold(x):
    x.unfold(1, 2, 2).add_(random.random())


def add_through_diagonal(x):
    x.diagonal().add_(random.random())


def add_through_transpose(x):
    x.T.add_(random.random())
    x.t()[0] += random.random()


def add_through_einsum(x):
    torch.einsum("ij->ji", x).add_(random.random())


def set_items(x):
    x[:, 1] = random.random()
    x[0] = 2.0
    x[x > 1.5] = 0.0


def random_in_place(x):
    x.bernoulli_(0.5)


def swap_data(x):
    x.data = x.data * random.random()


def out(x):
    torch.add(x, random.random(), out=x)


def nested_views(x):
    view = x.view(-1, 2, x.shape[1] // 2)[:, 0]
    other = view.detach()
    other += random.random()


def storage(x):
    x.untyped_storage().copy_((x.detach() * random.random()).clone().untyped_storage())


@pytest.mark.parametrize("change", [add_through_numpy, add_through_data, add_through_foreach, add_through_ops,
                                    add_through_unfold, add_through_diagonal, add_through_transpose, add_through_einsum,
                                    set_items, random_in_place, swap_data, out, nested_views, storage])  # fmt: skip
@pytest.mark.parametrize("of", ["input", "features"])
def test_a_change_in_place_by_any_way_is_seen_where_it_would_be(change, of):
    def program(batches):
        random.seed(3)
        torch.manual_seed(1)
        model, loader, found = Net(), DataLoader(points(), batch_size=8), []
        for _ in range(3):
            for x, _ in batches(loader):
                early = model.backbone(x * 2)
                if of == "input":
                    change(x)
                    late = model.backbone(x)
                else:
                    late = model.backbone(x)
                    before = late * 3
                    change(late)
                    early = early + before
                found += [early.sum().item(), late.sum().item(), x.sum().item(), (late * 2).sum().item()]
        return found

    compare(program)


def test_an_in_place_operation_that_plain_torch_refuses_is_refused():
    for x, _ in deferred():
        with pytest.raises(RuntimeError):
            x.add_(torch.ones(3, 1, 1))
        break
    for x, y in new_reuse().batches(DataLoader(points(), batch_size=8)):
        with pytest.raises(RuntimeError):
            y.mul_(0.5)
        half = x.half()
        half.add_(torch.ones(1))
        assert half.dtype == torch.float16
        break


def test_a_short_last_batch_changes_no_shape_that_was_seen():
    """`squeeze`, a slice of the first samples and a transposition fit a batch of one size by chance."""

    def program(batches):
        torch.manual_seed(1)
        model, found = frozen(nn.Linear(6, 5)), []
        for size in (5, 9, 4):  # 5 features; the last batch of 9 and of 4 has 2 and 1 samples
            for x, _ in batches(DataLoader(points(size * 3 + 1), batch_size=size)):
                features = model(x)
                shapes = (features.unsqueeze(2).squeeze(), features[:5], features.transpose(0, 1), features[..., :3],
                          features.narrow(0, 0, len(x)), features.split(5)[0], features.reshape(5, -1) if len(x) == 5 else x)  # fmt: skip
                found += [number for each in shapes for number in (*each.shape, each.sum().item())]
        return found

    compare(program, exact=False)


def test_negative_zero_is_another_constant_than_zero():
    for x, _ in new_reuse().batches(DataLoader(points(), batch_size=8)):
        positive, negative = x.abs() * 0.0, x.abs() * -0.0
        assert not torch.signbit(positive).any()
        assert torch.signbit(negative).all()


def test_a_deferred_tensor_that_is_kept_can_be_used_after_the_loop():
    model, loader, reuse = Net(), DataLoader(points(), batch_size=8, shuffle=True), new_reuse()
    plain = {float(x[0]): model.backbone(x[None]) for x, _ in points()}
    kept = []
    for _ in range(2):
        for x, y in reuse.batches(loader):
            kept.append((x, y, model.backbone(x)))
    reuse.close()
    for x, _, features in kept:
        for row, found in zip(x, features, strict=True):
            assert torch.allclose(found, plain[float(row[0])], atol=1e-6)
    assert torch.cat([y for _, y, _ in kept]).shape == (40,)


# ---- limits, and what is kept across runs


def test_without_memory_values_go_to_disk():
    reuse = new_reuse(memory_limit=0)
    training()(reuse.batches)
    assert reuse.report().num_looked_up > 0
    assert any("on disk" in line for line in reuse.report().remarks)


def test_without_any_room_nothing_is_stored_and_it_is_said():
    reuse = new_reuse(memory_limit=0, disk_limit=0)
    found = training()(reuse.batches)
    assert numbers(found) == numbers(training()(iter))
    assert reuse.report().num_looked_up == 0
    assert sum("raise memory_limit or disk_limit" in line for line in reuse.report().remarks) == 1


RUN = """
    import sys, torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from headstart.deferred import Reuse, real_values

    directory, weight, factor, shift, version = sys.argv[1], *map(float, sys.argv[2:5]), sys.argv[5]
    torch.__version__ = torch.__version__ + version
    torch.set_num_threads(1)

    class Data:
        def __init__(self):
            self.x = torch.arange(60.0).view(20, 3) + shift
            self.factor = factor
        def __len__(self):
            return 20
        def __getitem__(self, index):
            return self.x[index] * self.factor

    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(3, 16), nn.Tanh()).requires_grad_(False).eval()
    with torch.no_grad():
        backbone[0].weight.mul_(weight)
    loader = DataLoader(Data(), batch_size=8)
    reuse = Reuse(backbone, "exact", directory=directory, min_gain=0, say=print)
    for _ in range(2):
        for x in reuse.batches(loader):
            found = backbone(x) * 2
            plain = torch.tanh(x @ backbone[0].weight.T + backbone[0].bias) * 2
            assert torch.allclose(real_values(found), real_values(plain), atol=1e-5)
    reuse.close()
    print("computed", reuse.report().num_computed)
"""


@pytest.mark.slow
def test_a_second_process_uses_what_the_first_has_kept_where_all_is_the_same(tmp_path):
    def run(weight=1.0, factor=1.0, shift=0.0, version=""):
        command = [sys.executable, "-c", textwrap.dedent(RUN), tmp_path, weight, factor, shift, version]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "computed 20" in run()
    # The first batch is computed in every run, and compared with what was kept.
    assert "computed 8" in run()
    for change in ({"weight": 2.0}, {"factor": 2.0}, {"shift": 1.0}, {"version": "+other"}):
        assert "computed 20" in run(**change), change
    for path in tmp_path.glob("*.npy"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 255
        path.write_bytes(content)
    found = run()
    assert "is not used, its values are computed again" in found
    assert "computed 20" in found


def test_two_equal_data_sets_have_their_values_in_common_and_one_may_change(tmp_path):
    x = points().tensors[0]
    backbone = Net().backbone
    reuse = new_reuse(directory=tmp_path)
    first, second = (DataLoader(TensorDataset(x.clone()), batch_size=5) for _ in range(2))

    def features(loader):
        return torch.cat([real_values(backbone(x)) for (x,) in reuse.batches(loader)])

    features(first)
    features(second)
    assert reuse.report().num_computed == len(x) + 5  # the first batch, which is compared with what was kept
    first.dataset.tensors[0].add_(1)
    assert torch.allclose(features(first), backbone(x + 1), rtol=0, atol=TOLERANCE)
    assert torch.allclose(features(second), backbone(x), rtol=0, atol=TOLERANCE)


# ---- padding


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_mean_over_the_padding_is_that_of_the_batch_it_stands_in(shuffle, batch_size):
    def samples():
        generator = torch.Generator().manual_seed(0)
        return [
            (torch.randn(int(n), 6, generator=generator), int(n) % 3)
            for n in torch.randint(2, 6, (18,), generator=generator)
        ]

    def pad(batch):
        return nn.utils.rnn.pad_sequence([x for x, _ in batch], batch_first=True), torch.tensor(
            [y for _, y in batch]
        )

    def step(model, x, y):
        return functional.cross_entropy(model.head(model.backbone(x).mean(1)), y)

    compare(
        training(lambda: Net(nn.Sequential(nn.Linear(6, 8), nn.Tanh())), dataset=samples, step=step, collate_fn=pad,
                 shuffle=shuffle, batch_size=batch_size),
        exact=not shuffle,
    )  # fmt: skip
