"""What a sweep tries."""

import pytest

from headstart.errors import MisconfigurationError
from headstart.plans import PLANS
from headstart.sweep.space import FINE_TUNE, HEAD, params_of, settings_of, space_of


def space(kind="images", plans=(HEAD, FINE_TUNE), backbones=("a", "b"), **ranges):
    return space_of(kind, backbones=list(backbones), plans=list(plans), ranges=ranges)


def test_every_plan_has_its_own_settings_first_with_every_backbone():
    first = space().first_trials()
    assert [(each.plan, each.backbone) for each in first] == [
        (HEAD, "a"), (HEAD, "b"), (FINE_TUNE, "a"), (FINE_TUNE, "b"),
    ]  # fmt: skip
    assert first[0].values == {"strength": 0.01}
    assert first[2].values == {"lr": 5e-4, "layer_decay": 0.8, "weight_decay": 0.01}
    assert space("text").first_trials()[2].values["lr"] == 5e-5


def test_every_named_plan_takes_what_is_drawn_for_it():
    for name, make in PLANS.items():
        (first,) = space(plans=[name], backbones=["a"]).first_trials()
        values = {key: value for key, value in first.values.items() if key != "weight_decay"}
        plan = make(**values)
        assert plan.phases[-1].lr == values["lr"] == make().phases[-1].lr, name


def test_a_range_is_for_every_plan_that_has_the_setting():
    found = space(lr=(1e-6, 1e-5), layer_decay=(0.9, 0.95)).plans[FINE_TUNE]
    assert (found["lr"].low, found["lr"].high) == (1e-6, 1e-5)
    assert found["lr"].first == pytest.approx(10**-5.5)  # the plan's own lies outside: the middle, in decades
    assert found["layer_decay"].first == pytest.approx(0.925)
    assert space(lr=(1e-4, 1e-3)).plans[FINE_TUNE]["lr"].first == 5e-4  # inside: the plan's own
    assert space(lr=(1e-4, 1e-4)).plans[FINE_TUNE]["lr"].first == 1e-4


def test_the_study_knows_settings_by_their_plan():
    for each in space().first_trials():
        assert settings_of(params_of(each)) == each


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"plans": ["heads"]}, "--plan is 'heads'; expected head, fine_tune, linear_probe.*Did you mean 'head'"),
        ({"plans": ["head", "head"]}, "--plan head is given more than once"),
        ({"backbones": ["a", "a"]}, "--backbone a is given more than once"),
        ({"lr": (1e-3, 1e-5)}, "--lr is 0.001 1e-05; expected two numbers above 0, the smaller one first"),
        ({"lr": (0.0, 1e-5)}, "--lr is 0 1e-05"),
        ({"layer_decay": (0.5, 1.5)}, "--layer_decay is 0.5 1.5; expected two numbers above 0 up to 1"),
        ({"plans": ["head"], "lr": (1e-5, 1e-3)}, "--lr has no effect: of the plans head none has it. It is for fine_tune, "),
        ({"plans": ["full"], "strength": (1.0, 2.0)}, "--strength has no effect.*It is for head"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(given, message):
    with pytest.raises(MisconfigurationError, match=message):
        space(**given)
