"""The public line: docs/api.md lists what is in `__all__`, its examples run, and what is shipped as
an example imports nothing else."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmu.parts
from mmu.machine.vm import PART_BASES
from stress.commands.parts import methods_of
from tests.command import ROOT, python, real

PUBLIC = (
    "mmu",
    "mmu.parts",
    "mmu.sync",
    "stress.testing",
    "stress.pytest_plugin",
    "stress.mutants.case",
)
VARIANTS = re.compile(r"mmu\.kernels|mmu\.posted\.\w+|mmu\.export\.policies")
"""The modules of shipped variants, on which a shipped mutant may build."""

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
EXAMPLES = {
    text.splitlines()[0].removeprefix("# ").split(":")[0]: text
    for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
}


def names_in(module: str) -> list[str]:
    exported: list[str] = importlib.import_module(module).__all__
    return exported


def section_of(module: str) -> str:
    """What the page says about the names of a module."""
    section = re.search(rf"\n### `{re.escape(module)}`\n(.*?)(?=\n###? |\Z)", PAGE, re.DOTALL)
    assert section is not None
    return section[1]


EVERY_NAME = [(module, name) for module in PUBLIC for name in names_in(module)]


@pytest.mark.parametrize("module", PUBLIC)
def test_the_page_lists_what_is_exported(module: str) -> None:
    assert set(re.findall(r"`(\w+)`", section_of(module))) == set(names_in(module))
    assert len(names_in(module)) == len(set(names_in(module)))


@pytest.mark.parametrize(("module", "name"), EVERY_NAME)
def test_every_public_name_exists_and_is_documented(module: str, name: str) -> None:
    found = getattr(importlib.import_module(module), name)
    if inspect.isclass(found) or inspect.isroutine(found):
        assert found.__doc__
        assert not found.__name__.startswith("_")
    else:
        (line,) = [line for line in section_of(module).splitlines() if f"`{name}`" in line]
        assert len(re.sub(r"`\w+`|\W", "", line)) > 5, "its meaning stands beside it"


def test_the_names_of_mmu_have_a_home_each() -> None:
    assert set(mmu.__all__) == set(mmu._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mmu.nothing  # noqa: B018 - the look-up is what is tested


@pytest.mark.parametrize("part", PART_BASES, ids=lambda part: part.__name__)
def test_an_override_of_any_method_can_be_annotated_with_public_names(part: type) -> None:
    """Every name in a signature is exported by mmu.parts, or comes with Python."""
    standard = {"Any", "Callable", "Iterable", "Iterator", "T", "None", "bool", "dict", "float"}
    standard |= {"int", "list", "object", "set", "str", "tuple", "type"}
    signatures = [inspect.signature(method) for method in [*methods_of(part).values(), part]]
    annotations = " ".join(
        str(each)
        for signature in signatures
        for each in (
            *(parameter.annotation for parameter in signature.parameters.values()),
            signature.return_annotation,
        )
        if isinstance(each, str)
    )
    used = set(re.findall(r"[A-Za-z_]\w*", annotations))
    assert part.__name__ in names_in("mmu.parts")
    assert used - standard - set(names_in("mmu.parts")) == set()


OLDER = {
    "mmu.errors": "KvmError",
    "mmu.export.importer": "ExportedTdp ExportedTdps",
    "mmu.export.iommu": "Device KvmHwpt",
    "mmu.export.tdp_fd": "Exporter TdpFd",
    "mmu.kvm": "ADDRESS_SPACES Invalidation Kvm",
    "mmu.machine.vcpu": "Vcpu",
    "mmu.memory.host": "HostMemory Region tag_of",
    "mmu.memory.memslots": "KVM_MEM_LOG_DIRTY_PAGES Memslot Memslots MemslotSet",
    "mmu.memory.requests": "Requests",
    "mmu.memory.tlb": "RemoteTlb TranslationCache",
    "mmu.paging.nxlist": "PossibleNxHugePages",
    "mmu.paging.spte": "REMOVED_SPTE SPTE_D SPTE_R SPTE_W SPTE_X",
    "mmu.paging.table": "PageTableMemory RootPage RootRole ShadowPage",
    "mmu.sync.rcu": "Rcu Srcu",
    "mmu.tdp.age": "Ageing",
    "mmu.tdp.dirty": "DirtyLog",
    "mmu.tdp.fault": "CONTINUE RETRY SPURIOUS Fault FaultHandler PageCache RetPf",
    "mmu.tdp.huge": "HugePages",
    "mmu.tdp.iter": "TdpIter",
    "mmu.tdp.notifier": "MmuNotifier",
    "mmu.tdp.nx": "NxHugePages",
    "mmu.tdp.roots": "Roots",
    "mmu.tdp.write": "SpteWriter",
    "mmu.tdp.yielding": "Yielding",
    "mmu.tdp.zap": "Zapper",
    "mmu.variant": "Variant",
}
"""Where variant files from before `mmu.parts` import from."""


@pytest.mark.parametrize("module", OLDER)
def test_older_variant_files_find_what_they_import(module: str) -> None:
    for name in OLDER[module].split():
        found = getattr(importlib.import_module(module), name)
        assert getattr(mmu.parts, name, found) is found


# What is imported by what is shipped to be read.


def private_imports(text: str) -> Iterator[str]:
    """The imports from `mmu` and `stress` that are not public, in some source."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            if module.partition(".")[0] in ("mmu", "stress") and not (
                module in PUBLIC and (name is None or name in names_in(module))
            ):
                yield f"{module}.{name}"


def examples() -> Iterator[tuple[str, str]]:
    """Every program that is shipped for a reader to copy: its place and its text."""
    for path in [*ROOT.glob("examples/**/*.py"), *ROOT.glob("configs/**/*.py")]:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        text = page.read_text(encoding="utf-8")
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL), 1):
            yield f"{page.relative_to(ROOT)}, block {number}", block


def test_examples_import_only_what_is_public() -> None:
    found = {place: list(private_imports(text)) for place, text in examples()}
    assert {place: names for place, names in found.items() if names} == {}
    assert {"docs/threads.md", "docs/sync.md", "docs/api.md"} <= {
        place.split(",")[0] for place in found
    }


def mutants() -> list[Path]:
    folder = ROOT / "stress" / "mutants"
    return [
        path
        for path in folder.glob("**/*.py")
        if path.name not in ("__init__.py", "case.py", "commits.py")
    ]


def test_mutants_import_what_a_variant_file_may_import() -> None:
    found = {
        path.name: [
            name
            for name in private_imports(path.read_text(encoding="utf-8"))
            if not VARIANTS.fullmatch(name.rpartition(".")[0])
        ]
        for path in mutants()
    }
    assert len(found) > 80
    assert {name: private for name, private in found.items() if private} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from mmu.tdp.zap import Zapper",
        "import mmu.tdp.zap",
        "from mmu.sync import _Lock",
        "def late():\n    from stress.search.dpor import Dpor",
    ],
)
def test_a_private_import_is_found(line: str) -> None:
    assert list(private_imports(line)) != []


# The page's examples.


def test_the_variant_is_found_out(tmp_path: Path) -> None:
    idea = tmp_path / "idea.py"
    idea.write_text(EXAMPLES["idea.py"])
    (command,) = re.findall(r"```sh\nstress (explore .*) idea.py\n```", PAGE)
    done = real(*command.split(), idea, "--results", tmp_path)
    assert done.code == 1
    assert "O1" in done.out


def test_the_error_on_the_page_is_the_real_one(tmp_path: Path) -> None:
    idea = tmp_path / "idea.py"
    idea.write_text(EXAMPLES["idea.py"].replace("notify_importers", "notify_importer"))
    (told,) = re.findall(r"```text\n(.*?)\n```", PAGE)
    config = ROOT / "configs" / "explore" / "delete-vs-dma.toml"
    done = real("explore", "--config", config, "--variant", idea)
    assert done.code == 4
    assert told in done.err


def test_the_test_passes_under_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_counter.py").write_text(EXAMPLES["test_counter.py"])
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", tmp_path)
    assert done.code == 0, done.out
    assert "1 passed" in done.out


@pytest.mark.parametrize("name", ["stress/mutants/vcpus_only_flush.py", "library.py", "model.py"])
def test_the_other_programs_run(name: str) -> None:
    done = python("-c", EXAMPLES[name])
    assert (done.code, done.err) == (0, "")


def test_no_example_is_left_out() -> None:
    run = {"idea.py", "test_counter.py", "library.py", "model.py"}
    assert set(EXAMPLES) == {*run, "stress/mutants/vcpus_only_flush.py"}
