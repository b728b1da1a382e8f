"""Leaves secrets out of what is printed or written: their names stay, their values do not.

It judges by names and by the shape of a URL; a secret in a variable of a harmless name stays.
"""

import re
from collections.abc import Mapping, Sequence

HIDDEN = "(set, not shown)"

_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_HARMLESS = re.compile(
    r"(?:NUM|MAX)_[A-Z_]*TOKENS|TOKENIZER|TOKEN_IDS|TOKEN_BUDGET|KEY_VALUE|BYPASS", re.IGNORECASE
)
"""Parts of names that only look like secrets: `--max-num-batched-tokens`, `--tokenizer`."""

_USER_AND_PASSWORD = re.compile(r"\S*:\S*@")  # with the scheme: a password may hold anything
_SECRET_OPTIONS = re.compile(r"header", re.IGNORECASE)  # `--header "Authorization: Bearer ..."`


def is_secret(name: str) -> bool:
    """Whether a variable or an option of this name holds a secret."""
    plain = name.lstrip("-").replace("-", "_")
    return bool(_SECRET.search(_HARMLESS.sub("", plain)))


def without_passwords(value: str) -> str:
    """The text with `scheme://user:password@` left out."""
    return _USER_AND_PASSWORD.sub("***@", value)


def redacted_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables in the order of their names, secrets hidden."""
    return {
        name: HIDDEN if is_secret(name) else without_passwords(environment[name])
        for name in sorted(environment)
    }


def redacted_command(words: Sequence[str]) -> list[str]:
    """The words of a command line, secrets hidden: `--api-key X`, `--api-key=X`, `HF_TOKEN=X`."""
    shown: list[str] = []
    hide_next = False
    for word in words:
        name, equals, _ = word.partition("=")
        option = word.startswith("-")
        if hide_next and not option:
            shown.append(HIDDEN)
            continue  # an option may take several values
        hide_next = False
        secret = is_secret(name) or (option and bool(_SECRET_OPTIONS.search(name)))
        if secret and equals:
            shown.append(f"{name}={HIDDEN}")
        elif secret and option:
            shown.append(word)
            hide_next = True
        else:
            shown.append(without_passwords(word))
    return shown
