"""Stand-ins for programs of the system."""

from __future__ import annotations

import stat
import textwrap
from pathlib import Path


def program(path: Path, text: str, interpreter: str = "/usr/bin/env python3") -> Path:
    path.write_text(f"#!{interpreter}\n{textwrap.dedent(text)}", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
