"""`vllm-amdopt report`: run records as a page, a text, tables, figures and test results."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from vllm_amdopt.bench.report.build import build, verdict_line
from vllm_amdopt.run_record import RecordError, RunRecord, find_records, load, write_atomically

FORMATS = ("html", "md", "csv", "junit", "png")
FIGURES = "figures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "path", metavar="DIR", type=Path, help="a run record, or a directory that holds some"
    )
    parser.add_argument(
        "--format",
        metavar="NAME,...",
        default="html,md,csv,junit",
        help=f"of {', '.join(FORMATS)} (default: all but png, which needs matplotlib)",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="where to write (default: DIR)")


def run(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Write the report; 0, whatever the verdict is: `bench` judged it when it measured."""
    formats = _formats(options.format)
    paths = find_records(options.path)
    records = [load(path) for path in paths]
    report = build(records)
    beside = options.path if options.path.is_dir() else options.path.parent
    written = write(records, formats, options.out or beside)
    print(verdict_line(report))
    print("written: " + ", ".join(str(path) for path in written))
    return 0


def _formats(text: str) -> list[str]:
    formats = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise RecordError(
            f"--format {text!r}: {unknown[0] if unknown else 'nothing'} is no format; "
            f"there are {', '.join(FORMATS)}"
        )
    return formats


def write(records: Sequence[RunRecord], formats: Sequence[str], directory: Path) -> list[Path]:
    """The files that were written."""
    from vllm_amdopt.bench.report import junit, markdown, page, spreadsheet

    report = build(records)
    texts = {
        "html": lambda: {"report.html": page.render_html(report)},
        "md": lambda: {"report.md": markdown.render_markdown(report)},
        "csv": lambda: {
            "rows.csv": spreadsheet.rows_csv(records),
            "effects.csv": spreadsheet.effects_csv(records),
        },
        "junit": lambda: {"junit.xml": junit.render_junit(records)},
    }
    written = []
    for name in formats:
        if name == "png":
            written += _figures(records, directory / FIGURES)
            continue
        for file, text in texts[name]().items():
            # A lone surrogate from a log cannot be encoded: shown as a question mark.
            write_atomically(directory / file, text.encode("utf-8", "replace"))
            written.append(directory / file)
    return written


def _figures(records: Sequence[RunRecord], directory: Path) -> list[Path]:
    from vllm_amdopt.bench.report.figures import write_figures

    try:
        return write_figures(build(records), directory)
    except OSError as error:
        raise RecordError(f"{directory} cannot be written: {error.strerror}") from error
