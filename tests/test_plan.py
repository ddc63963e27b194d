"""Plans as data: what they say, how they are written and read, and what they refuse."""

import pytest
from torch import nn

from headstart.errors import MisconfigurationError
from headstart.groups import layout_of
from headstart.plan import LoRA, Phase, Plan
from headstart.plans import PLANS, named_plan


def net():
    module = nn.Module()
    module.backbone = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(3)))
    module.head = nn.Linear(2, 2)
    return module


def one(**phase):
    return Plan(phases=[Phase(**{"name": "a", "trains": "all", "epochs": 1, **phase})])


def rates(plan, phase=0):
    state = plan.state_at(layout_of(net()), phase)
    return {
        name: (lr, round(factor, 6)) for name, (lr, factor) in state.lrs.items() if name.endswith("weight")
    }


def test_every_block_has_the_decayed_rate_of_the_one_after_it():
    found = rates(one(lr=1.0, layer_decay=0.5))
    assert found["head.weight"] == (1.0, 1.0)
    assert [found[f"backbone.{index}.0.weight"] for index in range(3)] == [
        (1.0, 0.125),
        (1.0, 0.25),
        (1.0, 0.5),
    ]


def test_a_rate_of_the_backbone_is_that_of_its_last_block():
    found = rates(one(lr=1.0, backbone_lr=0.1, layer_decay=0.5))
    assert found["head.weight"] == (1.0, 1.0)
    assert [found[f"backbone.{index}.0.weight"] for index in range(3)] == [
        (0.1, 0.25),
        (0.1, 0.5),
        (0.1, 1.0),
    ]


def test_weight_decay_is_not_for_norms_and_biases_unless_it_is_said():
    layout = layout_of(net())
    spared = one(weight_decay=0.1).state_at(layout, 0).weight_decays
    assert {name for name, value in spared.items() if value == 0.1} == {
        *(f"backbone.{index}.0.weight" for index in range(3)), "head.weight",
    }  # fmt: skip
    assert set(
        one(weight_decay=0.1, decay_norms_and_biases=True).state_at(layout, 0).weight_decays.values()
    ) == {0.1}
    assert set(one().state_at(layout, 0).weight_decays.values()) == {0.0, None}


@pytest.mark.parametrize("norms", ["frozen", "adapt"])
def test_norms_that_are_kept_do_not_train(norms):
    trainable = one(norms=norms).state_at(layout_of(net()), 0).trainable
    assert not any(name.split(".")[2:3] == ["1"] for name in trainable)
    assert len(trainable) == 8


def test_a_cosine_falls_to_zero_after_its_warm_up():
    phase = Phase(name="a", trains="all", steps=6, warmup_steps=2, schedule="cosine")
    assert [phase.factor_at(step, total=6) for step in range(6)] == pytest.approx(
        [0.5, 1, 1, 0.853553, 0.5, 0.146447], rel=1e-5
    )


def test_a_rate_falls_with_whatever_ends_the_phase_first():
    phase = Phase(name="a", trains="all", steps=10, time="100s", schedule="linear")
    places = [(0, 0.0), (5, 20.0), (5, 80.0), (9, 200.0)]
    assert [phase.factor_at(step, total=10, seconds=seconds) for step, seconds in places] == pytest.approx(
        [1.0, 0.5, 0.2, 0.0]
    )


def test_a_warm_up_takes_no_more_than_a_tenth_of_the_time():
    phase = Phase(name="a", trains="all", time="100s", warmup_steps=1000)
    assert [
        phase.factor_at(step, total=float("inf"), seconds=5.0 * step) for step in range(4)
    ] == pytest.approx([0.001, 0.5, 1.0, 1.0])


# ---- as text


def test_a_time_is_written_as_seconds(tmp_path):
    plan = Plan(phases=[Phase(name="a", trains="all", time="1.5m")])
    plan.to_yaml(tmp_path / "plan.yaml")
    assert "time: 90.0" in (tmp_path / "plan.yaml").read_text()
    assert Plan.from_yaml(tmp_path / "plan.yaml") == plan


@pytest.mark.parametrize("name", PLANS)
def test_a_named_plan_is_the_same_after_being_written_and_read(name, tmp_path):
    plan = named_plan(name, monitor="val_loss")
    plan.to_yaml(tmp_path / "plan.yaml")
    assert Plan.from_yaml(tmp_path / "plan.yaml") == plan
    assert plan.name == name
    assert "20" in PLANS[name].__doc__ or name == "full", "its source"


def test_a_plan_as_a_person_writes_it(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("""
        monitor: val_f1
        mode: max
        phases:
          - {name: head, trains: head, lr: 0.001, patience: 3, epochs: 20}
          - name: top
            trains: [head, last 2 blocks, "!norms"]
            backbone_lr: 0.0001
            epochs: 3
        lora: {rank: 4, targets: [query, value]}
    """)
    plan = Plan.from_yaml(path)
    assert plan.phases[1].trains == ("head", "last 2 blocks", "!norms")
    assert plan.lora == LoRA(rank=4, targets=("query", "value"))
    assert plan.num_epochs == 23


@pytest.mark.parametrize("targets", ["query", ("query", "value"), ["query", "value"]])
def test_adapters_of_named_layers_are_the_same_after_being_written_and_read(targets, tmp_path):
    plan = Plan(phases=one().phases, lora=LoRA(targets=targets))
    plan.to_yaml(tmp_path / "plan.yaml")
    assert Plan.from_yaml(tmp_path / "plan.yaml") == plan


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("""
        phases: [{name: a, trains: all, lr: 1e-3, weight_decay: 1e-2, l2_sp: 0, epochs: "3", steps: 1e2, warmup_steps: 5.0}]
        lora: {rank: "4", dropout: 1e-1}
    """)
    plan = Plan.from_yaml(path)
    settings = {"lr": 0.001, "weight_decay": 0.01, "epochs": 3, "steps": 100, "warmup_steps": 5}
    assert plan == Plan(phases=one(**settings).phases, lora=LoRA(rank=4, dropout=0.1))
    assert {name: type(getattr(plan.phases[0], name)) for name in settings} == {
        "lr": float, "weight_decay": float, "epochs": int, "steps": int, "warmup_steps": int,
    }  # fmt: skip


PHASES = "phases: [{name: a, trains: all, epochs: 1}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phases: [{name: a, trains: all, epoch: 3}]", "Phase 'a' has no 'epoch'. Did you mean 'epochs'"),
        ("phases: [{name: a, epochs: 3}]", "Phase 'a' lacks 'trains'"),
        ("phases: [{name: a, trains: all, epochs: 3}, {trains: all}]", "Phase number 2 lacks 'name'"),
        ("phases: [3]", "Phase number 1 is 3; expected names with values"),
        (
            "phases: [{name: a, trains: all, epochs: two}]",
            "Phase 'a': epochs is 'two'; expected a whole number",
        ),
        ("phases: [{name: a, trains: 5, epochs: 1}]", "Phase 'a': trains is 5; expected text, or a list"),
        (
            "phases: [{name: a, trains: [head, null], epochs: 1}]",
            r"Phase 'a': trains is \['head', None\]; expected",
        ),
        ("phases: [{name: 5, trains: all, epochs: 1}]", "Phase 5: name is 5; expected text"),
        (f"{PHASES}\nlora: yes", "Plan 'plan': lora is True; expected the settings"),
        (f"{PHASES}\nlora: {{rank: 0}}", "LoRA: rank is 0; expected a whole number of 1 or more"),
        (f"{PHASES}\nlora: {{dropout: 1}}", "LoRA: dropout is 1.0; expected a number below 1"),
        (f"{PHASES}\nlora: {{targets: [3]}}", r"LoRA: targets is \[3\]; expected text, or a list"),
        (f"{PHASES}\nlora: {{ranks: 3}}", "A LoRA has no 'ranks'. Did you mean 'rank'"),
        (f"{PHASES}\nmonitor: 5", "Plan 'plan': monitor is 5; expected text"),
        (f"{PHASES}\nbackbone: null", "Plan 'plan': backbone is None; expected text"),
        (f"{PHASES}\nmode: [max]", r"Plan 'plan': mode is \['max'\]; expected 'min' or 'max'"),
        ("phases: [{name: 2026-13-01}]", "is no YAML: month must be"),
        ("phase: []", "A Plan has no 'phase'. Did you mean 'phases'"),
        ("phases: 3", "phases are 3; expected a list"),
        ("- 3", r"holds \[3\]; expected names"),
        ("phases: [", "is no YAML"),
        (
            "phases:\n  - {name: a, trains: head, lr: 0.1, lr: 0.2}",
            r"'lr' stands twice in one place\n.*line 2, column 38",
        ),
        ("[" * 10_000, "is no YAML"),
        ("phases: !!python/object/apply:os.system [ls]", "is no YAML"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(text, message, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(MisconfigurationError, match=rf"plan\.yaml' ?.*{message}"):
        Plan.from_yaml(path)


@pytest.mark.parametrize("word", ["!norms", "[all, !norms]", "*.bias"])
def test_words_that_lack_their_quotes_are_answered_with_them(word, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(f"phases:\n- name: a\n  trains: {word}\n  epochs: 1\n")
    with pytest.raises(MisconfigurationError, match='begin with ! or \\* stand in quotes there: "!norms"'):
        Plan.from_yaml(path)


def test_names_of_all_scripts_are_written_as_they_are(tmp_path):
    plan = Plan(name="計画", phases=[Phase(name="Köpfe", trains="head", epochs=1)])
    plan.to_yaml(tmp_path / "plan.yaml")
    text = (tmp_path / "plan.yaml").read_text(encoding="utf-8")
    assert "計画" in text
    assert "Köpfe" in text
    assert Plan.from_yaml(tmp_path / "plan.yaml") == plan


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"\x80\x04\xff")
    with pytest.raises(MisconfigurationError, match=r"plan.yaml' is no YAML: 'utf-8' codec can't decode"):
        Plan.from_yaml(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MisconfigurationError, match=r"nowhere.yaml' cannot be read: No such file"):
        Plan.from_yaml(tmp_path / "nowhere.yaml")


# ---- what makes no sense


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": None}, "never ends: give epochs="),
        ({"epochs": None, "time": "soon"}, "Phase 'a': time is 'soon'; expected a time such as 90s"),
        ({"time": 0}, "Phase 'a': time is 0; expected a time above 0"),
        ({"epochs": 0}, "epochs is 0; expected a whole number of 1 or more"),
        ({"epochs": 1.5}, "epochs is 1.5; expected a whole number"),
        ({"epochs": True}, "epochs is True; expected a whole number"),
        ({"epochs": float("inf")}, "epochs is inf; expected a whole number"),
        ({"steps": "1e999"}, "steps is '1e999'; expected a whole number"),
        ({"warmup_steps": None}, "warmup_steps is None; expected a whole number of 0 or more"),
        ({"weight_decay": -1}, "weight_decay is -1; expected a number of 0 or more"),
        ({"weight_decay": float("nan")}, "weight_decay is nan; expected a number"),
        ({"l2_sp": float("nan")}, "l2_sp is nan; expected a number of 0 or more"),
        ({"layer_decay": None}, "layer_decay is None; expected a number above 0"),
        ({"decay_norms_and_biases": "no"}, "decay_norms_and_biases is 'no'; expected true or false"),
        ({"trains": [1, 2]}, r"trains is \[1, 2\]; expected text, or a list of texts"),
        ({"trains": {"head": 1}}, "trains is {'head': 1}; expected text"),
        ({"schedule": ["linear"]}, r"schedule is \['linear'\]; expected one of"),
        ({"lr": "fast"}, "Phase 'a': lr is 'fast'; expected a number above 0"),
        ({"lr": -1.0}, "lr is -1.0; expected a number above 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"layer_decay": 0}, "layer_decay is 0"),
        ({"norms": "freeze"}, "norms is 'freeze'.*'frozen'"),
        ({"schedule": "cos"}, "schedule is 'cos'"),
        ({"trains": ()}, "trains is empty"),
        ({"epochs": None, "patience": 2}, "watches nothing"),
        ({"epochs": None, "patience": 2, "schedule": "linear"}, "needs to know its end"),
    ],
)
def test_a_phase_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(MisconfigurationError, match=message):
        one(**settings)


def test_a_plan_needs_phases_of_different_names():
    with pytest.raises(MisconfigurationError, match="has no phases"):
        Plan(phases=[])
    phase = Phase(name="a", trains="all", epochs=1)
    with pytest.raises(MisconfigurationError, match="two phases are named 'a'"):
        Plan(phases=[phase, phase])
    for other in (5, [5], phase):
        with pytest.raises(MisconfigurationError, match=r"phases are .*; expected a list"):
            Plan(phases=other)


def test_a_name_that_no_plan_has_is_answered_with_the_nearest():
    with pytest.raises(MisconfigurationError, match="There is no plan 'lpft'. Did you mean 'lp_ft'"):
        named_plan("lpft")
    with pytest.raises(MisconfigurationError, match="takes no 'epoch'. Did you mean 'epochs'"):
        named_plan("full", epoch=3)
