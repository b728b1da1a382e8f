"""Reports: what they have to say, and that nothing in a record can act on the reader's machine."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.synthetic_record import accuracy, serving, startup
from vllm_amdopt import cli
from vllm_amdopt.bench.report.build import build, flat
from vllm_amdopt.bench.report.content import Chart, Forest, Report, Section
from vllm_amdopt.bench.report.figures import write_figures
from vllm_amdopt.bench.report.junit import render_junit
from vllm_amdopt.bench.report.markdown import render_markdown
from vllm_amdopt.bench.report.page import SYNTHETIC, render_html
from vllm_amdopt.bench.report.spreadsheet import effects_csv, rows_csv
from vllm_amdopt.bench.report.svg import nice_ticks
from vllm_amdopt.bench.report.words import interval, percent
from vllm_amdopt.run_record import Conclusion, Judgement, Row, RunRecord, new_record, parse, save

HOSTILE = (
    "</title></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&|`[a](javascript:x)"
)

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting and gathers what a browser would run, fetch and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.identities: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.identities += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data + " "


def hostile() -> RunRecord:
    """A record in which everything that can be text is an attack."""
    content = json.dumps(
        {
            "arms": [
                {
                    "name": name + HOSTILE,
                    "environment": {"A" + HOSTILE: name},
                    "serve_arguments": [HOSTILE],
                    "plan": {HOSTILE: HOSTILE},
                    "evidence": [HOSTILE],
                }
                for name in ("a", "b")
            ],
            "rows": [
                {
                    "block": block,
                    "arm": name + HOSTILE,
                    "level": {"dataset": HOSTILE, "concurrency": load, HOSTILE: HOSTILE},
                    "order": HOSTILE,
                    "status": "error" if block == 2 else "ok",
                    "reason": HOSTILE,
                    "metrics": {"output_throughput": 1.0 + block, HOSTILE: 1.0, "p99_itl_ms": 2.0},
                }
                for block in range(3)
                for name in ("a", "b")
                for load in (1, 2)
            ],
            "tables": [{"title": HOSTILE, "head": [HOSTILE], "rows": [[HOSTILE]], "note": HOSTILE}],
            **{name: {HOSTILE: HOSTILE} for name in ("machine", "software", "workload")},
            "environment_difference": {HOSTILE: {"a" + HOSTILE: HOSTILE}},
            "commands": [HOSTILE],
            "notes": [HOSTILE],
            "title": HOSTILE,
            "judgement": {"slo": {"p99_itl_ms": 1.0, HOSTILE: 3.0}},
            "kind": "serving_ab",
            "created": "2026-11-26T00:00:00+00:00",
            "schema_version": 1,
        }
    )
    return parse(json.loads(content), "hostile")


def test_the_page_is_whole_and_fetches_nothing() -> None:
    text = render_html(build([serving(), startup(), accuracy()]))
    page = Page(text)
    for name, value in page.attributes:
        assert name not in ("src", "srcset", "data", "action"), (name, value)
        if name == "href":
            assert value.startswith("#") and value[1:] in page.identities
    assert not re.search(r"url\(|@import|https?:|//\w", text)
    assert len(set(page.identities)) == len(page.identities)
    assert page.tags.count("script") == 1


def test_nothing_of_a_record_becomes_markup() -> None:
    clean, attacked = (render_html(build([one])) for one in (serving(), hostile()))
    page = Page(attacked)
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert set(page.tags) <= set(Page(clean).tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text  # shown, as text


def test_markdown_of_an_attack_is_text() -> None:
    text = render_markdown(build([hostile()]))
    outside = re.sub(r"^(`{3,})sh\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"(?<!\\)<", outside)
    assert not re.search(r"\](?<!\\)\(", outside)
    for line in outside.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_csv_of_an_attack_is_no_formula() -> None:
    record = replace(
        hostile(), rows=tuple(replace(row, reason="=cmd|' /C calc'!A0") for row in hostile().rows)
    )
    (head, *lines) = list(csv.reader(io.StringIO(rows_csv([record]))))
    reasons = {line[head.index("reason")] for line in lines}
    assert reasons == {"'=cmd|' /C calc'!A0"}


def test_junit_of_an_attack_is_xml() -> None:
    record = replace(hostile(), title="\x00\x1b[31m")
    broken = replace(record.rows[0], status="error", reason="\x00\x1b[31m died \ud800")
    root = ElementTree.fromstring(render_junit([replace(record, rows=(broken,))]))
    messages = [element.get("message", "") for element in root.iter("error")]
    assert any("died" in message for message in messages)


def test_what_readers_expect_is_there() -> None:
    page = Page(render_html(build([serving(), startup(), accuracy()])))
    for expected in (
        "plugin is better than stock",
        "Successful requests",
        "Request throughput (req/s)",
        "Output token throughput (tok/s)",
        "Total token throughput (tok/s)",
        *(
            f"{kind} {name} (ms)"
            for kind in ("Mean", "p50", "p99")
            for name in ("TTFT", "TPOT", "ITL", "E2EL")
        ),
        "95 % interval",
        "Throughput against end-to-end latency",
        "saturation, plugin",
        "Highest load with p99 ITL ≤ 80 ms",
        "Model weight load",
        "Memory profiling",
        "Graph capture",
        "Initial warm-up",
        "Total start-up",
        "Mean KL",
        "Weights after load (GiB)",
        "What differs between the arms",
        "vllm-amdopt bench ab --model",
        "Limits",
        "names no AMD Instinct GPU",
        "block 4, plugin, random 1024/128, concurrency 256",
    ):
        assert expected in page.text, expected


def test_synthetic_numbers_are_called_so_in_every_format() -> None:
    records = [serving()]
    report = build(records)
    assert SYNTHETIC in render_html(report) and SYNTHETIC in render_markdown(report)
    for text in (rows_csv(records), effects_csv(records)):
        assert {line["synthetic"] for line in csv.DictReader(io.StringIO(text))} == {"True"}
    assert '<property name="synthetic" value="true"' in render_junit(records)
    real = replace(records[0], synthetic=False)
    assert SYNTHETIC not in render_html(build([real]))
    assert "synthetic" not in render_junit([real])


def test_numbers_of_the_formats_agree() -> None:
    record = serving()
    effects = list(csv.DictReader(io.StringIO(effects_csv([record]))))
    (line,) = [
        one
        for one in effects
        if (one["metric"], one["level"]) == ("output_throughput", "all levels")
    ]
    shown = f"{percent(float(line['improvement']))} " + interval(
        float(line["low"]), float(line["high"])
    )
    assert shown in Page(render_html(build([record]))).text
    assert shown in render_markdown(build([record]))
    assert len(list(csv.DictReader(io.StringIO(rows_csv([record]))))) == len(record.rows)


@pytest.mark.parametrize(
    ("faster", "noise", "kind", "headline", "tag"),
    [
        (0.05, 0.003, "serving_ab", "plugin is better than stock", None),
        (-0.05, 0.003, "serving_ab", "plugin is worse than stock", "failure"),
        (0.0, 0.001, "serving_ab", "equivalent within ±1.0 %", None),
        (0.0, 0.05, "serving_ab", "No conclusion about plugin", "skipped"),
        (0.0, 0.001, "serving_aa", "Identical arms do not differ", None),
        (0.05, 0.003, "serving_aa", "this measurement cannot be trusted", None),
    ],
)
def test_verdicts_in_words_and_as_tests(
    faster: float, noise: float, kind: str, headline: str, tag: str | None
) -> None:
    record = replace(
        serving(faster=faster, noise=noise, kind=kind, failing=False), judgement=Judgement()
    )
    assert headline in Page(render_html(build([record]))).text
    root = ElementTree.fromstring(render_junit([record]))
    (case,) = root.iter("testcase")
    assert [child.tag for child in case if child.tag != "system-out"] == ([tag] if tag else [])


def test_a_failed_conclusion_fails() -> None:
    record = replace(accuracy(), conclusion=Conclusion("failed", "KL 0.3 is above 1e-4."))
    assert "Accuracy of logits: failed" in Page(render_html(build([record]))).text
    root = ElementTree.fromstring(render_junit([record]))
    assert [one.get("message") for one in root.iter("failure")] == ["KL 0.3 is above 1e-4."]


def test_a_measurement_that_failed_altogether_has_a_report() -> None:
    """No numbers at all, one block, one arm: words instead of a traceback or a fake zero."""
    whole = serving()
    failed = tuple(
        Row(row.block, row.arm, row.level, "error", reason="out of memory") for row in whole.rows
    )
    page = Page(render_html(build([replace(whole, rows=failed)])))
    assert "nothing was measured that could be judged" in page.text
    assert "100 runs do not count (100 error)" in page.text
    for rows in ((), whole.rows[:1], whole.rows[:2]):
        record = replace(whole, rows=rows)
        assert render_html(build([record])) and render_markdown(build([record]))
        assert render_junit([record]) and effects_csv([record])
    single = new_record("serving_ab", whole.arms[:1], rows=())
    assert "Limits" in render_html(build([single]))


def test_a_level_that_one_arm_cannot_run_is_named() -> None:
    whole = serving(failing=False)
    rows = tuple(
        replace(row, status="unsupported", reason="too long for the plugin", metrics={})
        if row.arm == "plugin" and row.level["concurrency"] == 256
        else row
        for row in whole.rows
    )
    text = Page(render_html(build([replace(whole, rows=rows)]))).text
    assert "random 1024/128, concurrency 256: no block in which both stock and plugin" in text
    assert "too long for the plugin" in text


def test_many_arms_have_one_verdict_and_a_line_each() -> None:
    whole = serving(failing=False, blocks=6, loads=(8, 16))
    arms = [whole.arms[0], *(replace(whole.arms[1], name=f"only {name}") for name in "abcd")]
    rows = [row for row in whole.rows if row.arm == "stock"]
    for arm in arms[1:]:
        rows += [replace(row, arm=arm.name) for row in whole.rows if row.arm == "plugin"]
    rows = [
        replace(row, status="unsupported", reason="no latent attention", metrics={})
        if row.arm == "only d"
        else row
        for row in rows
    ]
    record = replace(
        whole,
        kind="serving_ablation",
        arms=tuple(arms),
        rows=tuple(rows),
        judgement=Judgement(),
    )
    text = Page(render_html(build([record]))).text
    assert "4 arms against stock" in text
    assert "better: only a, only b and only c; left out: only d" in text
    assert "Overview (only a)" in text and "Overview (only d)" not in text
    root = ElementTree.fromstring(render_junit([record]))
    (skipped,) = root.iter("skipped")
    assert skipped.get("message") == "no latent attention"


def test_a_tool_with_metrics_of_its_own_is_shown_as_it_concluded() -> None:
    arms = [replace(serving().arms[0], name=name) for name in ("stock", "stock again", "plugin")]
    rows = tuple(
        Row(0, arm.name, {"batch": 1}, "ok", metrics={"kl_mean": 1e-5, "top1": 0.999})
        for arm in arms
    )
    record = replace(
        accuracy(), arms=tuple(arms), rows=rows, judgement=Judgement("kl_mean", ("top1",))
    )
    page = Page(render_html(build([record])))
    assert "Accuracy of logits: passed" in page.text and "Mean KL" in page.text
    assert render_junit([record]) and effects_csv([record]) and "kl_mean" in rows_csv([record])


def test_kinds_without_a_page_of_their_own_show_their_numbers() -> None:
    rows = tuple(
        Row(0, arm, {"kernel": "gemm", "m": 16}, "ok", metrics={"microseconds": value})
        for arm, value in (("stock", 12.5), ("plugin", 11.25))
    )
    record = new_record("kernels", serving().arms, rows=rows)
    text = Page(render_html(build([record]))).text
    assert "microseconds" in text and "12.5" in text and "11.25" in text


def test_words() -> None:
    assert percent(0.042) == "+4.2 %"
    assert percent(-0.042) == "−4.2 %"
    assert percent(-0.0001) == "0.0 %"
    assert interval(0.029, 0.055) == "[+2.9, +5.5 %]"
    assert interval(None, 0.1) == ""
    assert flat({"gpus": [{"gfx": "gfx942"}], "a": {"b": [1, 2]}, "none": None}) == [
        ("gpus 0 gfx", "gfx942"),
        ("a b", "1, 2"),
    ]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 3721.0), (-2.2, 2.7), (5, 5), (0, 1e-7)])
def test_ticks_are_round_and_hold_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high
    assert 2 <= len(ticks) <= 12


# --- the command --------------------------------------------------------------------------------


def test_command_writes_all_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(serving(blocks=3, loads=(8, 16)), tmp_path / "run" / "record.json")
    save(startup(blocks=2), tmp_path / "run" / "startup.record.json")
    assert cli.main(["report", str(tmp_path / "run"), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "plugin" in said and "report.html" in said
    for name in ("report.html", "report.md", "rows.csv", "effects.csv", "junit.xml"):
        assert (tmp_path / name).stat().st_size > 100, name


def test_figures_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of each kind: bars, a forest and a chart, with a name that is no mathematics."""
    whole = startup(blocks=2)
    save(replace(whole, title="$x^"), tmp_path / "startup.record.json")
    assert cli.main(["report", str(tmp_path), "--format", "png"]) == 0
    names = [path.name for path in (tmp_path / "figures").iterdir()]
    assert names == ["start-up-by-stage.png"]
    blocks = [
        block
        for section in build([serving(blocks=3, loads=(8, 16))]).sections
        for block in section.blocks
        if isinstance(block, Forest | Chart)
    ][:2]
    chart = Report("$x^", "", True, (), (Section("$", tuple(blocks)),))
    written = write_figures(chart, tmp_path / "more")
    assert len(written) == 2
    for path in (*written, tmp_path / "figures" / names[0]):
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "nowhere"], "nowhere does not exist: name a run record"),
        (["report", "."], "holds no run record"),
        (["report", "truncated.json"], "was truncated; run the measurement again"),
        (["report", "good.json", "--format", "pdf"], "pdf is no format; there are html"),
        (["report", "good.json", "--format", ","], "nothing is no format"),
        (["report", "good.json", "--out", "good.json/x"], "cannot be written"),
    ],
)
def test_mistakes_are_said_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(serving(blocks=2, loads=(8,)), tmp_path / "good.json")
    (tmp_path / "truncated.json").write_bytes((tmp_path / "good.json").read_bytes()[:900])
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
