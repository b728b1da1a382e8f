"""The program of one arm: answers cells in an in-process vLLM engine; a subprocess of `logits`.

    python -m vllm_amdopt.accuracy.replay_program JOB.json

It judges nothing. What it measures goes to the job's `out` as one JSON object a line: `engine`,
then `recorded`, `replayed` and `doubled` for each cell, as far as they are asked for (or
`unsupported` with the reason), then `done`; an `error` with a sentence where it cannot go on. The
engine runs in this process, so that the composition of every batch is the same in every arm.
"""

from __future__ import annotations

import itertools
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_amdopt.accuracy.cells import Cell, Group, parse_cells, prompts_of_length

JOINING_AFTER = 2
"""Tokens that every earlier request has produced before the next group of a cell joins."""


class ReplayError(RuntimeError):
    """What keeps this arm from being measured, as one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    (path,) = sys.argv[1:] if arguments is None else arguments
    job: dict[str, Any] = json.loads(Path(path).read_text())
    with open(job["out"], "w", encoding="utf-8") as out:

        def say(event: str, **fields: Any) -> None:
            out.write(json.dumps({"event": event, **fields}) + "\n")
            out.flush()

        try:
            Arm(job).run(say)
        except ReplayError as error:
            say("error", sentence=str(error))
            return 1
        except Exception as error:
            traceback.print_exc()
            say("error", sentence=f"{type(error).__name__}: {error}")
            return 1
        say("done")
    return 0


class Arm:
    """One engine and the cells it is asked for."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.tokens: int = job["tokens"]
        self.cells: Sequence[Cell] = parse_cells(",".join(job["cells"]))
        self.engine, self.replays_traces = build_engine(job["model"], job["serve_args"], job["top"])
        self.config = self.engine.vllm_config
        self._requests = 0

    def run(self, say: Any) -> None:
        say("engine", **self.facts())
        reference = self.job["reference"]
        if reference is None:
            reference = self._record(say)
        else:
            reference = json.loads(Path(reference).read_text())
        for cell in self.cells:
            asked = reference.get(cell.name)
            if asked is None:
                continue
            say("replayed", cell=cell.name, sequences=self._replay(cell, asked))
            if self.job["doubled"]:
                twice = self._replay(doubled(cell), doubled_requests(cell, asked))
                say("doubled", cell=cell.name, sequences=originals(cell, twice))

    def facts(self) -> dict[str, Any]:
        """What the report says about this arm's engine."""
        import vllm

        config = self.config
        return {
            "vllm": vllm.__version__,
            "runner": "v2" if runs_on_v2(config) else "v1",
            "forced_by": "trace replay" if self.replays_traces else "logits processor",
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "vocabulary": config.model_config.get_vocab_size(),
            "max_model_len": config.model_config.max_model_len,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
            "enforce_eager": bool(config.model_config.enforce_eager),
        }

    # --- asking ---------------------------------------------------------------------------------

    def _record(self, say: Any) -> dict[str, Any]:
        """Tokens for every cell that this engine can take, drawn from what it thinks likely.

        Not greedy ones: those soon repeat themselves, and where a model is sure of every token, no
        error shows. Drawn by the engine's own generator, whose seed is vLLM's --seed: requests with
        seeds of their own end the CPU engine of vLLM 0.32 when a prompt is cut into chunks.
        """
        tokenizer = self.engine.get_tokenizer()
        sources = [tokenizer.encode(text, add_special_tokens=False) for text in self.job["prompts"]]
        reference: dict[str, Any] = {}
        first = 0
        for cell in self.cells:
            refused = self._refusal(cell)
            if refused is not None:
                say("unsupported", cell=cell.name, sentence=refused)
                continue
            prompts = list(prompts_of_length(sources, cell.contexts, first))
            first += cell.requests
            answers = self._answer(cell, prompts, [None] * cell.requests)
            reference[cell.name] = [
                {"prompt": prompt, "tokens": [int(token) for token in answer.token_ids]}
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
            say("recorded", cell=cell.name, sequences=reference[cell.name])
        return reference

    def _refusal(self, cell: Cell) -> str | None:
        longest = max(cell.contexts) + self.tokens
        limit = self.config.model_config.max_model_len
        if longest > limit:
            return (
                f"{longest} tokens do not fit this engine's max_model_len of {limit}; raise "
                "--max-model-len in --serve-args, or ask for another cell"
            )
        return None

    def _replay(self, cell: Cell, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The log-probabilities along the reference's tokens."""
        prompts = [one["prompt"] for one in asked]
        forced = [one["tokens"] for one in asked]
        answers = self._answer(cell, prompts, forced)
        sequences = []
        for answer, wanted in zip(answers, forced, strict=True):
            if [int(token) for token in answer.token_ids] != wanted:
                raise ReplayError(
                    f"cell {cell.name}: the engine did not follow the tokens that were forced on "
                    "it; this vLLM needs another way of forcing them, please report it"
                )
            positions = []
            for token, step in zip(wanted, answer.logprobs, strict=True):
                top = sorted(
                    ((int(key), float(entry.logprob)) for key, entry in step.items()),
                    key=lambda pair: (-pair[1], pair[0]),
                )
                positions.append({"chosen": float(step[token].logprob), "top": top})
            sequences.append({"positions": positions})
        return sequences

    def _answer(
        self,
        cell: Cell,
        prompts: Sequence[list[int]],
        forced: Sequence[list[int] | None],
    ) -> list[Any]:
        """The answers of one cell in the order of its requests; groups join one after another."""
        if not self.engine.reset_prefix_cache():
            raise ReplayError(
                "the prefix cache could not be emptied between cells; add "
                "--no-enable-prefix-caching to --serve-args"
            )
        names: list[str] = []
        answers: dict[str, Any] = {}
        taken = 0
        for group in cell.groups:
            started = tuple(names)
            while not all(
                name in answers and len(answers[name].token_ids) >= min(JOINING_AFTER, self.tokens)
                for name in started
            ):
                self._step(answers)
            for number in range(taken, taken + group.requests):
                self._requests += 1
                name = f"{cell.name}-{self._requests}"
                self.engine.add_request(
                    name, {"prompt_token_ids": prompts[number]}, self._sampling(forced[number])
                )
                names.append(name)
            taken += group.requests
        while self.engine.has_unfinished_requests():
            self._step(answers)
        return [answers[name] for name in names]

    def _step(self, answers: dict[str, Any]) -> None:
        for output in self.engine.step():
            answers[output.request_id] = output.outputs[0]

    def _sampling(self, forced: list[int] | None) -> Any:
        from vllm import SamplingParams

        from vllm_amdopt.accuracy.forced_tokens import ARGUMENT

        fields: dict[str, Any] = {}
        if forced is not None and self.replays_traces:
            fields["trace_decode_token_ids"] = forced
        elif forced is not None:
            fields["extra_args"] = {ARGUMENT: forced}
        if forced is not None:
            fields["logprobs"] = self.job["top"]
        return SamplingParams(
            temperature=1.0 if forced is None else 0.0,
            max_tokens=self.tokens,
            ignore_eos=True,
            detokenize=False,
            **fields,
        )


# --- another composition of the same batch ------------------------------------------------------


def doubled(cell: Cell) -> Cell:
    """The cell with every group twice as large."""
    return Cell(tuple(Group(2 * group.requests, group.context) for group in cell.groups))


def doubled_requests(cell: Cell, asked: Sequence[Any]) -> list[Any]:
    """The requests of the doubled cell: behind each group its copies, in reverse."""
    found: list[Any] = []
    for group, first in zip(cell.groups, _starts(cell), strict=True):
        own = list(asked[first : first + group.requests])
        found += [*own, *own[::-1]]
    return found


def originals(cell: Cell, answers: Sequence[Any]) -> list[Any]:
    """Of a doubled cell's answers, those to the requests themselves."""
    return [
        answer
        for group, first in zip(cell.groups, _starts(cell), strict=True)
        for answer in answers[2 * first : 2 * first + group.requests]
    ]


def _starts(cell: Cell) -> list[int]:
    """Number of the first request of each group."""
    return [0, *itertools.accumulate(group.requests for group in cell.groups)][:-1]


# --- the engine ---------------------------------------------------------------------------------


def runs_on_v2(config: Any) -> bool:
    """Which of vLLM's model runners a configuration uses."""
    return bool(getattr(config, "use_v2_model_runner", False))


def build_engine(model: str, serve_args: Sequence[str], top: int) -> tuple[Any, bool]:
    """An engine that can be forced to follow tokens, and whether it does so by trace replay."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    from vllm_amdopt.accuracy import forced_tokens

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    try:
        options = parser.parse_args(["--model", model, *serve_args])
    except SystemExit:
        raise ReplayError(
            f"vLLM does not take these engine arguments: {' '.join(serve_args)}; its own message "
            "is in the log"
        ) from None
    arguments = EngineArgs.from_cli_args(options)
    if arguments.speculative_config is not None:
        raise ReplayError(
            "speculative decoding cannot be forced to follow tokens; leave it away here, and "
            "compare its acceptance rate and `vllm-amdopt accuracy tasks` instead"
        )
    arguments.disable_log_stats = True
    # Taken before any processor, so that forcing does not change what is measured.
    arguments.logprobs_mode = "raw_logprobs"
    arguments.max_logprobs = max(arguments.max_logprobs, top)
    v2 = runs_on_v2(arguments.create_engine_config())
    if v2 and not hasattr(arguments, "enable_trace_replay"):
        raise ReplayError(
            "this vLLM's V2 runner cannot replay a trace; set VLLM_USE_V2_MODEL_RUNNER=0 in every "
            "arm"
        )
    if v2:
        arguments.enable_trace_replay = True
    else:
        arguments.logits_processors = [
            *(arguments.logits_processors or ()),
            forced_tokens.NAME,
        ]
    return LLMEngine.from_engine_args(arguments), v2


if __name__ == "__main__":
    sys.exit(main())
