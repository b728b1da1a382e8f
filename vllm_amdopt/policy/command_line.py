"""A `vllm serve` command line as the user wrote it: read into choices, and written out again.

Not vLLM's parser: it reads the options that decisions depend on and carries the others along. The
option names are those of vLLM's `EngineArgs` (vllm/engine/arg_utils.py).
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vllm_amdopt.policy.rule import DEFAULT, ENVIRONMENT
from vllm_amdopt.policy.situation import SettingValue, UserChoices


class CommandLineError(ValueError):
    """An option that cannot be read; the message is one sentence for the user."""


@dataclass(frozen=True)
class ServeArguments:
    """What stood on the command line: choices, variables before the command, options as given.

    `options` are (name, value) in order, value None for a flag; `model` is the positional one.
    """

    choices: UserChoices = field(default_factory=UserChoices)
    environment: Mapping[str, str] = field(default_factory=dict)
    options: tuple[tuple[str, str | None], ...] = ()
    model: str | None = None


_SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-ep": "--enable-expert-parallel",
    "-q": "--quantization",
    "-cc": "--compilation-config",
    "-ac": "--attention-config",
    "-sc": "--speculative-config",
    "--tp": "--tensor-parallel-size",
    "--pp": "--pipeline-parallel-size",
    "--dp": "--data-parallel-size",
    "--ep": "--enable-expert-parallel",
}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?)")
_FACTORS = {
    "": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "K": 1024,
    "M": 1024**2,
    "G": 1024**3,
}


def _count(name: str, text: str) -> int:
    """A whole number, as vLLM's human-readable integers write it: 32k is 32000, 32K is 32768."""
    found = _SIZE.fullmatch(text)
    if found is None or float(found.group(1)) == 0:
        raise CommandLineError(f"{name} {text}: expected a positive whole number")
    return int(float(found.group(1)) * _FACTORS[found.group(2)])


def _length(name: str, text: str) -> int | None:
    return None if text in ("auto", "-1") else _count(name, text)


def _fraction(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise CommandLineError(f"{name} {text}: expected a number above 0 and at most 1")
    return value


def _gib(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise CommandLineError(f"{name} {text}: expected a number of GiB above 0")
    return value


def _text(name: str, text: str) -> str:
    return text


def _upper(name: str, text: str) -> str:
    return text.upper()


_VALUES: Mapping[str, tuple[str, Callable[[str, str], object]]] = {
    "--tensor-parallel-size": ("tensor_parallel_size", _count),
    "--pipeline-parallel-size": ("pipeline_parallel_size", _count),
    "--data-parallel-size": ("data_parallel_size", _count),
    "--block-size": ("block_size", _count),
    "--max-model-len": ("max_model_len", _length),
    "--max-num-batched-tokens": ("max_num_batched_tokens", _count),
    "--max-num-seqs": ("max_num_seqs", _count),
    "--gpu-memory-utilization": ("gpu_memory_utilization", _fraction),
    "--attention-backend": ("attention_backend", _upper),
    "--kv-cache-dtype": ("kv_cache_dtype", _text),
    "--dtype": ("dtype", _text),
    "--quantization": ("quantization", _text),
    "--moe-backend": ("moe_backend", _text),
    "--mm-encoder-tp-mode": ("mm_encoder_tp_mode", _text),
}
_MEANS: Mapping[str, tuple[str, object]] = {
    "--enable-expert-parallel": ("expert_parallel", True),
    "--no-enable-expert-parallel": ("expert_parallel", False),
    "--enable-prefix-caching": ("prefix_caching", True),
    "--no-enable-prefix-caching": ("prefix_caching", False),
    "--disable-custom-all-reduce": ("disable_custom_all_reduce", True),
    "--enable-sleep-mode": ("sleep_mode", True),
    "--enable-lora": ("lora", True),
    "--enforce-eager": ("enforce_eager", True),
    "--allow-deprecated-quantization": ("allow_deprecated_quantization", True),
    "--kv-offloading-size": ("kv_offload", True),  # and its size, _gib
    "--kv-transfer-config": ("kv_offload", True),
    "--speculative-config": ("speculative", True),
}
_NESTED: Mapping[tuple[str, ...], str] = {
    ("--compilation-config", "pass_config", "fuse_allreduce_rms"): "fuse_allreduce_rms",
    ("--compilation-config", "pass_config", "fuse_rope_kvcache"): "fuse_rope_kvcache",
    ("--attention-config", "backend"): "attention_backend",
    ("--kernel-config", "moe_backend"): "moe_backend",
}


def read_serve_arguments(text: str) -> ServeArguments:
    """The command line `text`: options alone, or all of "NAME=1 vllm serve MODEL --option ...".

    Raises CommandLineError on unbalanced quotes, a value that is none, or an option that is given
    twice with different values.
    """
    try:
        words = shlex.split(text.replace("\\\n", " "))
    except ValueError as error:
        raise CommandLineError(f"the arguments {text!r} cannot be read: {error}") from error
    environment: dict[str, str] = {}
    while words and (words[0] in ("export", "env") or _VARIABLE.fullmatch(words[0])):
        word = words.pop(0)
        if "=" in word:
            name, _, value = word.partition("=")
            environment[name] = value
    if words[:2] == ["vllm", "serve"]:
        words = words[2:]
    options, model = _options(words)
    return ServeArguments(_choices(options), environment, options, model)


def _options(words: Sequence[str]) -> tuple[tuple[tuple[str, str | None], ...], str | None]:
    options: dict[str, str | None] = {}
    model: str | None = None
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("-"):
            if model is not None:
                raise CommandLineError(f"{word!r} is neither an option nor the value of one")
            model = word
            continue
        name, equals, value = word.partition("=")
        head, dot, path = name.partition(".")  # --compilation-config.pass_config.NAME
        name = _SHORT.get(head, head.replace("_", "-")) + dot + path
        given: str | None = value if equals else None
        takes_one = name in _VALUES or name not in _MEANS or name in _WITH_VALUE
        following = words[position] if position < len(words) else None
        if not equals and takes_one and following is not None and not _is_option(following):
            given = following
            position += 1
        if name in _VALUES and given is None:
            raise CommandLineError(f"{name} needs a value")
        if name in options and options[name] != given:
            raise CommandLineError(f"{name} is given twice: {options[name]} and {given}")
        options[name] = given
    return tuple(options.items()), model


_WITH_VALUE = ("--kv-offloading-size", "--kv-transfer-config", "--speculative-config")


def _is_option(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?", word)


def _choices(options: Sequence[tuple[str, str | None]]) -> UserChoices:
    found: dict[str, object] = {}
    for name, value in options:
        if name in _VALUES and value is not None:
            key, read = _VALUES[name]
            found[key] = read(name, value)
        elif name in _MEANS:
            key, meaning = _MEANS[name]
            found[key] = meaning
        if name == "--kv-offloading-size" and value is not None:
            found["kv_offloading_gib"] = _gib(name, value)
        for path, nested in _NESTED.items():
            inner = _nested(name, value, path)
            if inner is not None:
                found[nested] = inner
    return replace(UserChoices(), **found)  # type: ignore[arg-type]


def _nested(name: str, value: str | None, path: tuple[str, ...]) -> object:
    """A value inside a JSON option, or of its dotted form (`--attention-config.backend X`)."""
    if name == ".".join(path):
        return {"true": True, "false": False}.get(str(value).lower(), value)
    if name != path[0] or value is None:
        return None
    try:
        inner: object = json.loads(value)
    except ValueError:
        return None  # -O3 and file names are none of our business
    for key in path[1:]:
        inner = inner.get(key) if isinstance(inner, dict) else None
    return inner


_FLAGS: Mapping[str, str] = {
    "block_size": "--block-size",
    "kv_offloading_size": "--kv-offloading-size",
    "moe_backend": "--moe-backend",
    "mm_encoder_tp_mode": "--mm-encoder-tp-mode",
    "fuse_allreduce_rms": "--compilation-config.pass_config.fuse_allreduce_rms",
    "fuse_rope_kvcache": "--compilation-config.pass_config.fuse_rope_kvcache",
    "fuse_qk_norm_rope_kvcache": "--compilation-config.pass_config.fuse_qk_norm_rope_kvcache",
    "use_inductor_graph_partition": "--compilation-config.use_inductor_graph_partition",
}


def command_with_plugin(model: str, arguments: ServeArguments) -> str:
    """The command as the user gave it, with the plugin on."""
    return _command(model, arguments.environment, arguments.options, ("--plugin", "amdopt"))


def command_by_hand(
    model: str,
    arguments: ServeArguments,
    settings: Mapping[str, SettingValue],
    attention_backend: str | None,
) -> str:
    """A command for stock vLLM with the plan's settings spelled out.

    `attention_backend` stands for the plan's attention order, for which vLLM has no option.
    """
    environment = dict(arguments.environment)
    options = dict(arguments.options)
    for key, value in settings.items():
        if key.startswith(ENVIRONMENT):
            environment[key.removeprefix(ENVIRONMENT)] = str(value)
        elif key == "attention_order" and attention_backend is not None:
            options.setdefault("--attention-backend", attention_backend)
        elif key == "share_replicated_region":
            extra = {"kv_connector_extra_config": {key: value}}
            options.setdefault("--kv-transfer-config", json.dumps(extra))
        elif key in _FLAGS and value == DEFAULT:
            options.pop(_FLAGS[key], None)
        elif key in _FLAGS:
            options[_FLAGS[key]] = _written(value)
    return _command(model, environment, tuple(options.items()))


def _command(
    model: str,
    environment: Mapping[str, str],
    options: Sequence[tuple[str, str | None]],
    *more: tuple[str, str],
) -> str:
    lines = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    lines.append(f"vllm serve {shlex.quote(model)}")
    lines += [
        name if value is None else f"{name} {shlex.quote(value)}"
        for name, value in (*options, *more)
    ]
    return " \\\n  ".join(lines)


def _written(value: SettingValue) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
