"""What a run's results depend on besides the scenario: interpreter, versions, machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import sysconfig
from pathlib import Path

import psutil

from stress.results.run_record import Environment

PACKAGES = ("attrs", "cattrs", "click", "jinja2", "psutil", "readerwriterlock", "rich")


def gil_enabled() -> bool:
    """Whether this interpreter runs with its global lock now."""
    check = getattr(sys, "_is_gil_enabled", None)
    return bool(check()) if check is not None else True


def observe() -> Environment:
    """The environment of this process."""
    return Environment(
        version=version_of("tdp-stress"),
        python=platform.python_version(),
        implementation=platform.python_implementation(),
        free_threaded_build=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        gil_enabled=gil_enabled(),
        packages={name: version_of(name) for name in PACKAGES},
        platform=platform.platform(terse=True),
        cpu=_cpu_model(),
        cpus=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
    )


def version_of(name: str) -> str:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
