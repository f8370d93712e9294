"""`stress campaign` and --scheduler as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from stress.commands import schema
from stress.runs.compare.groups import load_groups
from tests.cli.test_cli import FORGETFUL, MET, QUICK
from tests.command import ROOT, UNTIL_MET, Stress, real

DEVICE = ROOT / "configs" / "BUSTED" / "no-flush-after-exported-zap.toml"


def test_a_campaign_stores_its_runs_and_is_a_group_to_compare(tmp_path: Path) -> None:
    done = real(
        *(
            "campaign",
            "-c",
            QUICK,
            "--seeds",
            "2",
            "--first-seed",
            "7",
            "--json",
            "--results",
            tmp_path,
            *MET,
        )
    )
    assert done.code == 0, done.out + done.err
    data = json.loads(done.out)
    jsonschema.validate(data, json.loads(schema.as_text("campaign")))
    assert [(run["seed"], run["verdict"]) for run in data["runs"]] == [(7, "PASS"), (8, "PASS")]
    (group,) = load_groups([str(tmp_path)])
    assert sorted(run.seed for run in group.runs) == [7, 8]
    assert {run.command.split()[1] for run in group.runs} == {"campaign"}
    assert all((Path(run["directory"]) / "timeline.json.gz").is_file() for run in data["runs"])


def test_a_variant_from_a_file_fails_in_every_run(
    stress: Stress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "idea.py").write_text(FORGETFUL)
    asked = (
        "--mended",
        "--variant",
        "idea.py",
        "--seeds",
        "1",
        "--results",
        "there",
        *UNTIL_MET,
    )
    done = stress("campaign", "-c", DEVICE, *asked)
    assert done.code == 1, done.out + done.err
    assert done.out.splitlines()[-1] == "FAIL  no-flush-after-exported-zap: of 1 run 1 FAIL"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("campaign", "-c", QUICK, "--seeds", "0"), "0 is not in the range"),
        (("campaign", "-c", QUICK, "--set", "vm.vcpu=1"), "did you mean vcpus?"),
        (
            ("explore", "-c", QUICK, "--exhaustive", "--scheduler", "tcp://127.0.0.1:1"),
            "dpor keeps a list of what is left",
        ),
    ],
)
def test_mistakes_are_told(stress: Stress, arguments: tuple[str, ...], said: str) -> None:
    done = stress(*arguments)
    assert done.code == 4
    assert said in done.err
