"""Writes tasks in the form that lm-eval reads, and reads back what it wrote; it runs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_amdopt.accuracy.task_items import Task

PREFIX = "amdopt_"
"""Keeps our tasks apart from those that lm-eval brings along."""

_NUMBER = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"


class SamplesError(RuntimeError):
    """What lm-eval wrote is not what was asked for; one sentence."""


def write_tasks(tasks: Sequence[Task], folder: Path) -> list[str]:
    """One YAML and one JSONL file a task; returns the names that lm-eval knows them by."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for task in tasks:
        data = folder / f"{task.name}.jsonl"
        data.write_text(
            "".join(
                json.dumps({"prompt": item.prompt, "answer": item.answer}) + "\n"
                for item in task.items
            )
        )
        names.append(f"{PREFIX}{task.name}")
        # YAML takes JSON as it is.
        (folder / f"{task.name}.yaml").write_text(
            json.dumps(_definition(task, data.resolve()), indent=1) + "\n"
        )
    return names


def _definition(task: Task, data: Path) -> dict[str, Any]:
    extract: list[dict[str, Any]] = [{"function": "remove_whitespace"}, {"function": "take_first"}]
    metric: dict[str, Any] = {
        "metric": "exact_match",
        "aggregation": "mean",
        "higher_is_better": True,
    }
    if task.number:
        extract = [
            {"function": "regex", "group_select": -1, "regex_pattern": _NUMBER},
            {"function": "take_first"},
        ]
        metric["regexes_to_ignore"] = [",", r"\$", r"\.$"]
    return {
        "task": f"{PREFIX}{task.name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "num_fewshot": 0,
        "generation_kwargs": {
            "until": list(task.stop),
            "max_gen_toks": task.longest,
            "do_sample": False,
            "temperature": 0.0,
        },
        "filter_list": [{"name": "answer", "filter": extract}],
        "metric_list": [metric],
        "metadata": {"version": 1},
    }


@dataclass(frozen=True)
class Sample:
    """One answered item. `hashes`: of the document, the prompt and the target."""

    right: bool
    hashes: tuple[str, str, str]
    answer: str


Samples = Mapping[str, Mapping[int, Sample]]
"""Task -> document number -> sample."""


def read_samples(path: Path, tasks: Sequence[Task]) -> dict[str, dict[int, Sample]]:
    """What `lm_eval_program` wrote; SamplesError unless it has every item of every task once."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SamplesError(f"lm-eval left no samples in {path}: {error}") from error
    found: dict[str, dict[int, Sample]] = {}
    for task in tasks:
        rows = content.get(f"{PREFIX}{task.name}", ())
        try:
            found[task.name] = {int(row["doc_id"]): _sample(row) for row in rows}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SamplesError(
                f"{path}: this lm-eval writes samples of {task.name} in another form ({error!r})"
            ) from error
        if not len(found[task.name]) == len(rows) == len(task.items):
            raise SamplesError(
                f"lm-eval gave {len(rows)} samples for the {len(task.items)} items of {task.name}"
            )
    return found


def _sample(row: Mapping[str, Any]) -> Sample:
    hashes = (row["doc_hash"], row["prompt_hash"], row["target_hash"])
    if not all(isinstance(one, str) and one for one in hashes):
        raise ValueError("a hash is missing")
    return Sample(float(row["exact_match"]) == 1.0, hashes, str(row["filtered_resps"][0]))


def differing_hashes(first: Samples, second: Samples) -> str:
    """Which item two arms were not asked alike; empty where all are."""
    for task, samples in first.items():
        for number, sample in samples.items():
            other = second.get(task, {}).get(number)
            if other is None or other.hashes != sample.hashes:
                return f"item {number} of {task}"
    return ""
