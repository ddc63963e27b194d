"""Every program of `examples/`, run as a user runs it; the number that it prints at its end."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TESTED_ELSEWHERE = {"demo"}  # tests/cli and `make demo`

# For each program the least and the largest last number. The bounds are wide: what is learned differs between machines.
LAST_NUMBER = {
    "backbone_finetuning": (0.6, 1.0),  # by chance 0.5
    "bert_pairs": (0.8, 1.0),  # by chance 0.33
    "custom_finetuning": (0.8, 1.0),  # by chance 0.2
    "feature_extractor": (0.7, 1.0),  # by chance 0.1
    "resnet_cifar10": (0.4, 1.0),  # by chance 0.1
    "resume": (0.0, 0.0),  # bit for bit
}


def run_example(name, folder):
    """Run a program in a folder of its own, with the network out of reach, and give what it prints."""
    unreachable = "http://127.0.0.1:9"  # port 9 discards; nothing listens there
    environment = os.environ | {
        "http_proxy": unreachable,
        "https_proxy": unreachable,
        "TORCH_HOME": str(folder),
        "PYTHONWARNINGS": "default",
    }
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Give what a program prints; each runs once."""
    outputs = {}

    def output_of(name):
        if name not in outputs:
            outputs[name] = run_example(name, tmp_path_factory.mktemp(name))
        return outputs[name]

    return output_of


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*LAST_NUMBER, *TESTED_ELSEWHERE}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAST_NUMBER)
def test_example_ends_in_its_number(name, printed):
    least, largest = LAST_NUMBER[name]
    last_line = printed(name).rstrip().splitlines()[-1]
    assert least <= float(re.search(r"[\d.]+$", last_line).group()) <= largest


@pytest.mark.slow
def test_resnet_example_says_what_it_could_not_fetch(printed):
    output = printed("resnet_cifar10")
    assert "RANDOM weights instead" in output
    assert "DIGITS, enlarged, instead" in output


@pytest.mark.slow
def test_resume_example_is_cut_before_at_and_after_the_thaw(printed):
    cuts = re.findall(r"cut after epoch ([\d.]+): largest difference ([\d.]+)", printed("resume"))
    assert [epoch for epoch, _ in cuts] == ["0.5", "1.0", "1.5", "2.0", "2.5", "3.0", "3.5"]
    assert {difference for _, difference in cuts} == {"0.0"}


@pytest.mark.slow
def test_custom_finetuning_example_thaws_a_layer_at_each_epoch(printed):
    assert "[0.1, 0.05, 0.025, 0.0125]" in printed("custom_finetuning")
    assert "parameter groups: 4" in printed("custom_finetuning")
