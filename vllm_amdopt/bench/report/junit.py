"""The verdicts as JUnit XML, so that a pipeline shows them as tests: a regression is a failure.

Inconclusive is skipped, not passed: nobody should read a green tick as "no difference".
"""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from vllm_amdopt.bench.analysis import Cell, analyse
from vllm_amdopt.bench.report import words
from vllm_amdopt.run_record import RunRecord

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(records: Sequence[RunRecord]) -> str:
    """One suite for each record."""
    root = ElementTree.Element("testsuites", name="vllm-amdopt")
    for record in records:
        suite = ElementTree.SubElement(
            root, "testsuite", name=record.kind, timestamp=record.created
        )
        if record.synthetic:
            properties = ElementTree.SubElement(suite, "properties")
            ElementTree.SubElement(properties, "property", name="synthetic", value="true")
        _cases(suite, record)
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(name, str(len(suite.findall(f"testcase/{tag}"))))
        suite.set("tests", str(len(suite.findall("testcase"))))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _cases(suite: ElementTree.Element, record: RunRecord) -> None:
    if record.conclusion is not None:
        tag = {"failed": "failure", "inconclusive": "skipped"}.get(record.conclusion.outcome)
        _case(suite, record, "conclusion", tag, record.conclusion.sentence)
    elif record.kind.startswith(("serving", "startup")):
        for comparison in analyse(record).comparisons:
            where = f"{comparison.candidate} against {comparison.baseline}"
            if comparison.unsupported:
                _case(suite, record, where, "skipped", comparison.unsupported)
                continue
            if comparison.invalid:
                _case(suite, record, where, "error", comparison.invalid)
            judged = dict.fromkeys((*comparison.primary, *comparison.gates))
            for cell in judged:
                _case(suite, record, f"{where}: {cell.name}", _tag(cell), words.improvement(cell))
    for row in record.rows:
        if row.status == "error":
            level = " ".join(f"{name}={value}" for name, value in row.level.items())
            name = f"block {row.block + 1}, {row.arm}, {level}, repetition {row.repetition + 1}"
            _case(suite, record, name, "error", row.reason)


def _tag(cell: Cell) -> str | None:
    if cell.effect is None:
        return "error"
    return {"regression": "failure", "inconclusive": "skipped"}.get(cell.verdict or "")


def _case(
    suite: ElementTree.Element, record: RunRecord, name: str, tag: str | None, said: str
) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname=f"vllm-amdopt.{record.kind}", name=_xml(name)
    )
    if tag is not None:
        ElementTree.SubElement(case, tag, message=_xml(said))
    else:
        ElementTree.SubElement(case, "system-out").text = _xml(said)


def _xml(text: str) -> str:
    """Without the characters that XML has no way to hold."""
    return _NOT_XML.sub("�", text)
