"""JUnit XML: what CI systems read.

There is no one format of that name. This is what two strict schemas have in common, Jenkins'
(xunit2) and the one of Ant's report task: a case has at most one outcome, times are plain seconds,
a time stamp has no zone (it is UTC), and both `system-out` and `system-err` are there.
`tests/data/junit.xsd` says it exactly.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from stress.report.cases import Suite, SuiteCase

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML 1.0 document can hold, not even escaped."""


def render(suite: Suite) -> str:
    """The document."""
    root = ET.Element("testsuites")
    element = ET.SubElement(
        root,
        "testsuite",
        {
            "name": _token(suite.name) or "unnamed",
            "package": "tdp-stress",
            "id": "0",
            "timestamp": suite.started.removesuffix("Z"),
            "hostname": "localhost",
            "tests": str(len(suite.cases)),
            "failures": str(suite.count("failure")),
            "errors": str(suite.count("error")),
            "skipped": str(suite.count("skipped")),
            "time": _seconds(suite.wall_s),
        },
    )
    properties = ET.SubElement(element, "properties")
    for name, value in suite.properties:
        ET.SubElement(properties, "property", {"name": name, "value": _token(value)})
    for case in suite.cases:
        _add(element, suite, case)
    ET.SubElement(element, "system-out").text = _text(suite.summary)
    ET.SubElement(element, "system-err").text = ""
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False).join(
        ['<?xml version="1.0" encoding="UTF-8"?>\n', "\n"]
    )


def _add(parent: ET.Element, suite: Suite, case: SuiteCase) -> None:
    """One case. The time of the whole is that of its first case: nobody knows what a rule takes."""
    time = _seconds(suite.wall_s if case is suite.cases[0] else 0.0)
    where = f"tdp-stress.{_token(suite.name)}.{case.group}"
    element = ET.SubElement(
        parent, "testcase", {"classname": where, "name": _token(case.name), "time": time}
    )
    if case.outcome == "passed":
        return
    detail = ET.SubElement(element, case.outcome, {"message": _token(case.message)})
    if case.outcome != "skipped":
        detail.set("type", _token(case.kind) or case.outcome)
        detail.text = _text(case.text)


def _seconds(value: float) -> str:
    return f"{value:.3f}"


def _text(value: str) -> str:
    """What XML can hold of a text."""
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", value)


def _token(value: str) -> str:
    """The text in one line, with single blanks."""
    return " ".join(_text(value).split())
