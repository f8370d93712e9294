"""The house rules that a machine can check: floors, file sizes, docstrings, and where shared state
may live."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("mmu/**/*.py"), *ROOT.glob("stress/**/*.py")])
ALL = sorted([*SOURCES, *ROOT.glob("tests/**/*.py")])

ATOMICS = {"cmpxchg", "xchg", "fetch_add", "fetch_or", "fetch_and", "inc_not_zero"}

OWN_STATE = {
    # Classes whose attributes change after construction, each with the one thread or lock that
    # changes them.
    "Fault": "made, filled and dropped by one fault",
    "Hold": "its thread; `mode` is read by others as a hint",
    "_RwHold": "as Hold",
    "Reader": "its thread; others read the epoch cell",
    "Task": "its thread; read by the watchdog for display",
    "_Shard": "its thread; sums are exact at rest",
    "TdpIter": "the walk that made it",
    "ShadowPage": "its allocator, before it is visible; its obituary, after it is not",
    "Memslot": "its obituary, after it was replaced",
    "RcuHead": "the task that retired it",
    "Vcpu": "the thread that runs it",
    "VcpuStats": "the thread that runs the vCPU; read by others as a hint",
    "Device": "whoever holds the hardware lock",
    "TranslationCache": "its vCPU's thread, or the device's hardware lock",
    "Probe": "whoever assembles the VM, before threads run",
    "Reporter": "whoever assembles the VM, before threads run",
    "Rcu": "the worker lock",
    "EpochDomain": "the readers lock",
    "RwLock": "the holds lock",
    "Obituary": "the task that frees the object",
    "Runtime": "whoever assembles the VM, before threads run",
    "PageCache": "its vCPU's thread, or the exporter's cache mutex",
    "Cell": "the word itself",
    "Counter": "the word itself",
    "Table": "the words themselves",
    "Ledger": "its thread; others read the tuples",
    "Callback": "the callback task, and whoever waits in a barrier",
    "Refcount": "each thread its own ledger",
    "Lock": "whoever holds it; others read the owner as a hint",
    "RLock": "as Lock",
    "ReaderWriterLock": "a grant's words are its owner's",
    "_Downgradable": "as ReaderWriterLock",
    "ReadHandle": "the thread that has made it",
    "WriteHandle": "as ReadHandle",
    "SrcuSection": "the thread that has made it",
    "Pulse": "the thread that beats; others take differences of what it has counted",
    "VirtualMachine": "its constructor, in `_assemble_mmu`",
}

NAMESAKES = {
    # Words that are assigned and have the name of another that is modified, each with the other
    # one.
    "exported.released": "a flag of one exported TDP; the counter belongs to PageTableMemory",
}


def test_no_file_passes_600_lines() -> None:
    assert [path for path in ALL if len(path.read_text(encoding="utf-8").splitlines()) > 600] == []


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_the_model_makes_no_threading_primitive_of_its_own() -> None:
    """Locks, threads and sleeps come from the runtime; plain locks guard only registries, never the
    model's words."""
    allowed = {"runtime.py", "task.py", "report.py", "lockdep.py", "locks.py", "rcu.py", "table.py"}
    allowed |= {"stack.py"}  # one collector of garbage for the process
    allowed |= {"pulse.py"}  # one thread for the process, which touches nothing of the model
    # for programs that start their own threads; no part of the model
    allowed |= {"default.py", "threads.py", "rwlocks.py"}
    for path in ROOT.glob("mmu/**/*.py"):
        if path.name not in allowed:
            assert not {"threading", "time", "_thread"} & set(imports_of(path)), path


def test_what_each_task_has_of_its_own_comes_from_the_runtime() -> None:
    """A thread may carry many tasks, one after another or in turns: only the runtime knows whose
    record is asked for."""
    allowed = {
        "mmu/runtime.py",  # where tasks are threads
        "mmu/task.py",  # `current`, for threads that nobody has made a task of
        "stress/testing/explorer.py",  # about the thread that explores, which is no task
        "stress/testing/plain/before.py",  # finds those of the code under test
    }
    uses = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "threading.local"
    }
    assert uses == allowed


def late_assignments(path: Path) -> Iterator[tuple[str, str, int]]:
    """Attributes of self, or of anything else, assigned outside a constructor: (class, target,
    line)."""
    for owner in ast.walk(tree_of(path)):
        if not isinstance(owner, ast.ClassDef):
            continue
        for method in owner.body:
            if isinstance(method, ast.FunctionDef) and method.name != "__init__":
                for node in ast.walk(method):
                    targets = (
                        node.targets
                        if isinstance(node, ast.Assign)
                        else [node.target]
                        if isinstance(node, ast.AugAssign | ast.AnnAssign)
                        else []
                    )
                    for target in targets:
                        for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                            if (
                                isinstance(part, ast.Attribute)
                                and isinstance(part.value, ast.Name)
                                and part.value.id == "self"
                            ):
                                yield owner.name, part.attr, part.lineno


def test_shared_state_lives_in_runtime_objects() -> None:
    """A field that changes after construction belongs to one thread, which OWN_STATE names, or it
    is a cell."""
    strays = [
        f"{path.relative_to(ROOT)}:{line}: {owner}.{attribute}"
        for path in ROOT.glob("mmu/**/*.py")
        for owner, attribute, line in late_assignments(path)
        if owner not in OWN_STATE
    ]
    assert strays == []


def test_only_words_without_read_modify_writes_are_assigned() -> None:
    """A cell on which an atomic read-modify-write is used must be stored with `store`, or the store
    could be lost."""
    modified: set[str] = set()
    assigned: dict[str, str] = {}
    for path in ROOT.glob("mmu/**/*.py"):
        for node in ast.walk(tree_of(path)):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Attribute(attr=word), attr=operation)
                ) if operation in ATOMICS:
                    modified.add(word)
                case ast.Assign(
                    targets=[ast.Attribute(value=ast.Attribute(attr=word) as target, attr="value")]
                ):
                    if ast.unparse(target) not in NAMESAKES:
                        assigned[word] = f"{path.relative_to(ROOT)}:{node.lineno}"
                case _:
                    pass
    assert len(modified) > 5
    assert len(assigned) > 5
    assert {name: place for name, place in assigned.items() if name in modified} == {}


def undocumented(path: Path) -> Iterator[str]:
    """The module, its public classes and functions, and their public methods, where they have no
    docstring. A method that is marked with `@override` is described by what it overrides."""
    named: list[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef]] = [("", tree_of(path))]
    for name, node in named:
        if not ast.get_docstring(node):
            yield f"{path.relative_to(ROOT)}: {name or 'the module'}"
        if not isinstance(node, ast.FunctionDef):
            inner = [
                each
                for each in node.body
                if isinstance(each, ast.ClassDef | ast.FunctionDef)
                and not each.name.startswith("_")
                and "override" not in map(ast.unparse, each.decorator_list)
            ]
            named += [(f"{name}.{each.name}".lstrip("."), each) for each in inner]


def test_public_names_have_docstrings() -> None:
    assert [name for path in SOURCES for name in undocumented(path)] == []


def defined_twice(paths: Iterable[Path]) -> dict[str, list[str]]:
    """Class names that more than one class has, each with the places of those classes."""
    places: dict[str, list[str]] = {}
    for path in paths:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{path}:{node.lineno}")
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_class_name_is_defined_twice() -> None:
    """So that a class is found by its name, and means one thing. Variants are exempt: their files
    hold one idea each, with classes that nothing else names."""
    ideas = {"posted", "mutants"}
    assert defined_twice(path for path in SOURCES if not ideas & {*path.parent.parts}) == {}


def test_a_class_defined_twice_is_found(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("class Stage: ...\nclass Actor: ...\n", encoding="utf-8")
    two.write_text("def inner():\n    class Stage: ...\n", encoding="utf-8")
    assert defined_twice([one, two]) == {"Stage": [f"{one}:1", f"{two}:2"]}
