"""Variant files: what is loaded, and what a mistake in one is answered with."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from mmu.variant import Variant
from stress.scenario.errors import VariantError
from stress.scenario.variant_files import load_variants, variants_from

Load = Callable[[str], tuple[Variant, ...]]

HEAD = "from mmu import Variant\nfrom mmu.memory.tlb import RemoteTlb\n"
TAIL = "VARIANT = Variant(name='idea', title='an idea', parts=(Idea,))\n"


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load the variants of a file with this text."""

    def load(text: str) -> tuple[Variant, ...]:
        (tmp_path / "idea.py").write_text(text)
        return load_variants(tmp_path / "idea.py")

    return load


def part(body: str, base: str = "RemoteTlb", head: str = HEAD) -> str:
    """A file with one part; its body begins at line 4 where `head` is the usual one."""
    return f"{head}class Idea({base}):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n{TAIL}"


def refused(load: Load, text: str) -> str:
    with pytest.raises(VariantError) as error:
        load(text)
    return str(error.value)


GOOD = part("def flush(self, reason):\n    super().flush(reason)\n")


def test_every_variant_at_the_top_level_is_loaded(load: Load) -> None:
    found = load(GOOD + "OTHER = Variant(name='other', title='', parts=(Idea,))\n")
    assert [variant.name for variant in found] == ["idea", "other"]


def test_a_misspelt_method_is_refused_with_its_line_and_the_right_name(load: Load) -> None:
    body = "def flush(self, reason): pass\n\ndef notify_importer(self, gfn, pages): pass\n"
    assert refused(load, part(body)) == (
        "idea: Idea.notify_importer() (idea.py:6) overrides no method of RemoteTlb (did you mean "
        "notify_importers?), and nothing in the file calls it; start the name of a helper with an "
        "underscore"
    )


def test_a_misspelt_method_that_passes_the_call_on_is_refused_too(load: Load) -> None:
    body = "def flush_ranges(self, *args):\n    super().flush_ranges(*args)\n"
    assert "did you mean flush_range?" in refused(load, part(body))


def test_a_misspelt_method_of_a_class_between_is_refused(load: Load) -> None:
    head = f"{HEAD}class Between(RemoteTlb):\n    def flushh(self): pass\n"
    text = part("def flush(self, reason): pass", base="Between", head=head)
    assert "Between.flushh() (idea.py:4) overrides no method" in refused(load, text)


@pytest.mark.parametrize(
    "helper",
    [
        "def _told(self): pass",
        "def told(self): pass\ndef more(self): self.told()\ndef flush_range(self, *a): self.more()",
        "def told(self): pass\ndef flush_range(self, *args): getattr(self, 'told')()",
        "told = 5",
    ],
    ids=["underscore", "called", "called by its name", "no method"],
)
def test_a_helper_is_no_misspelling(load: Load, helper: str) -> None:
    body = f"{helper}\ndef flush(self, reason): pass"
    assert load(part(body))[0].name == "idea"


def test_what_a_shipped_variant_adds_can_be_overridden(load: Load) -> None:
    """`flush_workqueue` is a method of ZapByWorkqueue, and not of the part."""
    head = "from mmu import Variant\nfrom mmu.kernels import ZapByWorkqueue\n"
    body = "def flush_workqueue(self): pass"
    assert load(part(body, base="ZapByWorkqueue", head=head))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "def flush_range(self, gfn: int): pass",
            "idea: Idea.flush_range(self, gfn: int) must take what RemoteTlb.flush_range takes: "
            "(self, reason: str, gfn: int, pages: int) -> None (idea.py:4)",
        ),
        ("flush = 5", "idea: Idea.flush must be a method, as RemoteTlb.flush is"),
        ("pass", "idea: Idea (idea.py:3) overrides nothing of RemoteTlb, which has flush(), "),
    ],
)
def test_an_override_that_cannot_work_is_refused(load: Load, body: str, reason: str) -> None:
    assert refused(load, part(body)).startswith(reason)


@pytest.mark.parametrize(
    ("parameters", "fits"),
    [
        ("slot, start, end, *, flush", True),
        ("a, b, c, *, flush=False, more=0", True),
        ("*args, **kwargs", True),
        ("slot, start, end", False),
        ("slot, start, end, *, flushed", False),
        ("slot, start, *, end, flush", False),
        ("slot, start, end, more, *, flush", False),
        ("*args", False),
    ],
)
def test_an_override_takes_every_call_that_the_original_takes(
    load: Load, parameters: str, fits: bool
) -> None:
    """unmap_gfn_range(slot, start, end, *, flush)"""
    head = "from mmu import Variant\nfrom mmu.tdp.notifier import MmuNotifier\n"
    text = part(
        f"def unmap_gfn_range(self, {parameters}): return False", base="MmuNotifier", head=head
    )
    if fits:
        load(text)
    else:
        assert "must take what MmuNotifier.unmap_gfn_range takes" in refused(load, text)


def test_an_argument_that_may_be_left_out_may_be_left_out_of_the_override(load: Load) -> None:
    """page_fault(gfn, write, present=False, fetch=False)"""
    head = "from mmu import Variant\nfrom mmu.machine.vcpu import Vcpu\n"
    body = "def page_fault(self, gfn, write, present, fetch): return None"
    text = part(body, base="Vcpu", head=head)
    assert "must take what Vcpu.page_fault takes" in refused(load, text)


def test_a_subclass_of_no_part_is_told_the_nearest_part(load: Load) -> None:
    text = part("pass", base="RemoteTLB", head=HEAD + "class RemoteTLB: pass\n")
    message = refused(load, text)
    assert message.startswith("idea: Idea is no subclass of a part (did you mean RemoteTlb?)")
    assert message.endswith("Vcpu (idea.py:4)")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n", "defines no variant; end it with VARIANT = Variant("),
        ("\n1/0\n", "ZeroDivisionError: division by zero (idea.py:2)"),
        ("\ndef x(:\n", "SyntaxError: invalid syntax (idea.py:2)"),
        ("raise SystemExit(0)", "SystemExit: 0 (idea.py:1)"),
        ("\nfrom mmu.tdp.zap import Zaper", "(did you mean Zapper?) (idea.py:2)"),
        ("from mmu.tdp.zapp import Zapper", "No module named 'mmu.tdp.zapp' (idea.py:1)"),
        (HEAD + TAIL.replace("Idea,", ""), "idea: parts must be a tuple of classes"),
        (HEAD + TAIL.replace("(Idea,)", "RemoteTlb"), "idea: parts must be a tuple of classes"),
        (GOOD.replace("'an idea'", "5"), "name and title of a Variant must be texts"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(load: Load, text: str, reason: str) -> None:
    assert reason in refused(load, text)


def test_the_file_is_named_where_several_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    with pytest.raises(VariantError, match=r"^\S+/none\.py: no such file$"):
        variants_from([str(tmp_path / "good.py"), str(tmp_path / "none.py")])
