"""Operations as text and back, and what is said of a script that does not fit its scenario."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmu.machine.vcpu import FETCH
from mmu.runtime import Runtime
from stress.engines.session import Session
from stress.scenario.errors import ConfigError
from stress.scenario.load import load
from stress.scenario.operations import VERBS, VOCABULARY, Op, OpError, kind_of, parse
from stress.scenario.scripts import Script, players, prepared, script_of
from stress.scenario.types import Scenario

CONFIGS = Path(__file__).parents[4] / "configs"


# Text.


@pytest.mark.parametrize(
    ("text", "op"),
    [
        ("write 0x4", Op("write", (4,))),
        ("read 0x0", Op("read", (0,))),
        ("smm on", Op("smm", (1,))),
        ("nested off", Op("nested", (0,))),
        ("idle", Op("idle")),
        ("shadow 11", Op("shadow", (11,))),
        ("run r0x4 w0x4 x0x5", Op("run", (8, 9, 10 | FETCH))),
        ("delete 0", Op("delete", (0,))),
        ("dma-write 0x40", Op("dma-write", (64,))),
        ("dma r0x1 w0x2", Op("dma", (2, 5))),
        ("discard 0 0 1", Op("discard", (0, 0, 1))),
        ("age 1 2 3 test", Op("age", (1, 2, 3, 2))),
        ("attributes 0x0 0x10", Op("attributes", (0, 16))),
        ("close-any", Op("close-any")),
    ],
)
def test_an_operation_is_its_text(text: str, op: Op) -> None:
    assert parse(text) == op
    assert str(op) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("write 12", "write 0xc"),
        ("smm 1", "smm on"),
        ("delete 0x2", "delete 2"),
        (" idle ", "idle"),
    ],
)
def test_numbers_may_be_written_either_way(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical


def ops() -> st.SearchStrategy[Op]:
    """Any operation with arguments of the right kinds."""

    def argument(argument: object) -> st.SearchStrategy[int]:
        words = getattr(argument, "words", ())
        return st.integers(0, len(words) - 1) if words else st.integers(0, 1 << 40)

    def op(name: str) -> st.SearchStrategy[Op]:
        verb = VERBS[name]
        if verb.many:
            access = st.integers(0, 1 << 40)
            if name == "run":
                access |= st.integers(0, 1 << 40).map(lambda gfn: gfn << 1 | FETCH)
            return st.lists(access, min_size=1, max_size=5).map(
                lambda accesses: Op(name, tuple(accesses))
            )
        return st.tuples(*map(argument, verb.arguments)).map(lambda args: Op(name, args))

    return st.sampled_from(sorted(VERBS)).flatmap(op)


@given(ops())
def test_any_operation_survives_being_written_down(op: Op) -> None:
    assert parse(str(op)) == op


def parsed(text: str) -> Op | None:
    """The operation, if the text is one; anything but an `OpError` goes on."""
    try:
        return parse(text)
    except OpError:
        return None


@given(
    st.text(max_size=20)
    | st.sampled_from(sorted(VERBS)).flatmap(
        lambda name: st.text("0123456789xrw -", max_size=9).map(f"{name} ".__add__)
    )
)
def test_any_text_is_an_operation_or_wrong(text: str) -> None:
    op = parsed(text)
    assert op is None or parse(str(op)) == op


@given(ops())
def test_the_pieces_of_an_operation_make_the_same_accesses(op: Op) -> None:
    pieces = op.pieces()
    assert all(piece.pieces() == (piece,) for piece in pieces)
    assert len(pieces) == (len(op.args) if op.name in ("run", "dma") else 1)
    assert [parse(str(piece)) for piece in pieces] == list(pieces)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("", "vcpu", "unknown operation ''; expected one of read, write, fetch"),
        (
            "wirte 0x4",
            "vcpu",
            "unknown operation 'wirte'; expected one of read, write, fetch, run, smm, nested, "
            "shadow, idle (did you mean write?)",
        ),
        (
            "write 0x4",
            "memslot-worker",
            "unknown operation 'write'; expected one of create, delete, move, flags",
        ),
        ("write", "vcpu", "write with 0 arguments; expected write GFN"),
        ("idle 3", "vcpu", "idle with 1 argument; expected idle"),
        ("discard 0 1", "host", "discard with 2 arguments; expected discard R FIRST LAST"),
        (
            "age 0 0 1 tset",
            "host",
            "found 'tset' as HOW; expected flush or clear or test (did you mean test?)",
        ),
        ("smm 2", "vcpu", "found '2' as on|off; expected off or on"),
        ("write -1", "vcpu", "found '-1' as GFN; expected a whole number from 0 on"),
        ("write 0x", "vcpu", "found '0x' as GFN"),
        ("write " + "9" * 5000, "vcpu", "as GFN; expected a whole number"),
        ("run", "vcpu", "run with 0 arguments; expected run ACCESS..."),
        ("run 0x4", "vcpu", "found '0x4' as an access; expected r, w or x and a gfn, such as w0x4"),
        ("run r0xffffffffffffffff", "vcpu", "as an access"),
        ("dma x0x4", "device", "a device that fetches instructions"),
    ],
)
def test_a_wrong_text_says_what_would_be_right(text: str, kind: str, message: str) -> None:
    with pytest.raises(OpError) as caught:
        parse(text, kind)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_no_two_actors_share_a_verb() -> None:
    assert sum(map(len, VOCABULARY.values())) == len(VERBS)
    assert all(verb.meaning for verb in VERBS.values())


@pytest.mark.parametrize(
    ("actor", "kind"),
    [
        ("vcpu0", "vcpu"),
        ("device12", "device"),
        ("memslot-worker", "memslot-worker"),
        ("vcpu", ""),
        ("nx-admin0", ""),
        ("iopf0", ""),
        ("", ""),
    ],
)
def test_the_kind_of_an_actor_follows_from_its_name(actor: str, kind: str) -> None:
    assert kind_of(actor) == kind


# A scenario's script.

SMALL = """\
[vm]
vcpus = 2
levels = 2
entries = 4
frames = 24
[memory]
fixed_pages = 2
churn_slots = 1
churn_pages = 1
smm_pages = 0
smm_churn_pages = 0
[actors.host]
threads = 1
[actors.nx]
enabled = true
"""


def problems_of(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            'vcpu0 = ["wirte 0x4"]',
            "script.vcpu0.0: unknown operation 'wirte'; expected one of read",
        ),
        (
            'vcpu0 = ["read 0x0", "write 0x10"]',
            "script.vcpu0.1: write 0x10: there is no gfn 0x10; expected a gfn up to 0xf",
        ),
        ('vcpu0 = ["run r0x0 w0x99"]', "script.vcpu0.0: run r0x0 w0x99: there is no gfn 0x99"),
        (
            'vcpu2 = ["read 0x0"]',
            "script.vcpu2: no actor of this scenario; expected one of setup, vcpu0, vcpu1, "
            "memslot-worker",
        ),
        ('memslot-wroker = ["delete 0"]', "(did you mean memslot-worker?)"),
        ('iopf0 = ["read 0x0"]', "script.iopf0: no actor of this scenario"),
        (
            'memslot-worker = ["delete 1"]',
            "script.memslot-worker.0: delete 1: there is no churn slot 1; expected a churn slot "
            "below 1",
        ),
        (
            'memslot-worker = ["delete"]',
            "script.memslot-worker.0: delete with 0 arguments; expected delete I",
        ),
        (
            'host0 = ["discard 2 0 1"]',
            "script.host0.0: discard 2 0 1: there is no region 2; expected a region below 2",
        ),
        (
            'host0 = ["age 0 1 3 test"]',
            "script.host0.0: age 0 1 3 test: no range of region 0; expected FIRST < LAST <= 2",
        ),
        (
            'nx-admin = ["attributes 0x4 0x4"]',
            "script.nx-admin.0: attributes 0x4 0x4: no range of guest frames; expected FIRST < "
            "LAST <= 0x10",
        ),
        ('vcpu0 = "read 0x0"', "script.vcpu0: found 'read 0x0'; expected a list of operations"),
        ("vcpu0 = [3]", "script.vcpu0: found [3]; expected a list of operations"),
        (
            'setup = ["write 0x0"]',
            "script.setup.0: unknown operation 'write'; expected one of create, delete, move, "
            "flags",
        ),
        (
            'setup = ["create 0", "vcpu0: create 0"]',
            "script.setup.1: unknown operation 'create'; expected one of read",
        ),
        (
            'setup = ["vcpus0: read 0x0"]',
            "script.setup.0: unknown actor 'vcpus0'; expected the name of an actor, such as vcpu0 "
            "(did you mean vcpu?)",
        ),
        (
            'setup = ["vcpu7: read 0x0"]',
            "script.setup.0: vcpu7 is no actor of this scenario; expected one of vcpu0, vcpu1",
        ),
        ('setup = ["create 7"]', "script.setup.0: create 7: there is no churn slot 7"),
    ],
)
def test_one_wrong_line_is_one_problem_with_its_place(
    tmp_path: Path, line: str, expected: str
) -> None:
    (problem,) = problems_of(tmp_path, f"{SMALL}[script]\n{line}\n")
    number = len(SMALL.splitlines()) + 2
    assert f"scenario.toml:{number}: " in problem
    assert expected in problem


def test_all_that_is_wrong_with_a_script_comes_with_everything_else(tmp_path: Path) -> None:
    problems = problems_of(
        tmp_path,
        f'{SMALL}[script]\nvcpu0 = ["wirte 0x0", "idle"]\nhost0 = '
        '["split"]\n[obligations]\nvcpu_fault = 1\n[limits]\nstall = 3\n',
    )
    assert [problem.split(": ")[1] for problem in problems] == [
        "script.vcpu0.0",
        "script.host0.0",
        "obligations.vcpu_fault",
        "limits.stall",
    ]


def test_a_script_is_what_its_lines_say(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(
        f'{SMALL}[script]\nsetup = ["create 0", "vcpu1: write 0x0"]\nvcpu0 = ["write 0x4", '
        '"idle"]\nvcpu1 = []\n',
        encoding="utf-8",
    )
    scenario = load(path)
    script = script_of(scenario)
    assert script == Script(
        {"vcpu0": (Op("write", (4,)), Op("idle")), "vcpu1": ()},
        (("memslot-worker", Op("create", (0,))), ("vcpu1", Op("write", (0,)))),
    )
    assert script.part("host0") == ()
    assert script.slot_updates() == [Op("create", (0,))]
    assert script.turns() == [("vcpu1", Op("write", (0,)))]


def test_without_a_script_chance_decides() -> None:
    assert script_of(Scenario()) is None


def test_spaces_around_the_actor_of_a_setup_line_do_not_matter() -> None:
    assert prepared("  device0 :  detach ") == ("device0", Op("detach"))


@pytest.mark.parametrize(
    "path",
    sorted(path for path in CONFIGS.rglob("*.toml") if path.parent.name != "studies"),
    ids=lambda path: path.stem,
)
def test_the_players_are_the_cast_without_its_services(path: Path) -> None:
    session = Session(load(path), 1, Runtime())
    session.set_up()
    assert players(session.scenario) == [actor.name for actor in session.actors if not actor.serves]
    session.vm.kvm.rcu.shutdown()
