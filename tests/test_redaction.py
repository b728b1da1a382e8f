"""Secrets stay out of what is written; settings that only sound like secrets stay in."""

from __future__ import annotations

import pytest

from vllm_amdopt.redaction import HIDDEN, is_secret, redacted_command, redacted_environment


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "VLLM_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "GITHUB_TOKENS",
        "TOKENIZER_AUTH_TOKEN",
        "--api-key",
        "--ssl-keyfile-password",
        "X_CREDENTIALS",
    ],
)
def test_secrets_are_known_by_their_names(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "--max-num-batched-tokens",
        "--tokenizer",
        "--tokenizer-mode",
        "VLLM_ROCM_USE_AITER",
        "MAX_NUM_TOKENS",
        "--model",
    ],
)
def test_settings_are_no_secrets(name: str) -> None:
    assert not is_secret(name)


def test_environment() -> None:
    shown = redacted_environment(
        {"Z": "1", "HF_TOKEN": "hf_abc", "HTTPS_PROXY": "http://me:pa@ss@proxy:3128"}
    )
    assert shown == {"HF_TOKEN": HIDDEN, "HTTPS_PROXY": "***@proxy:3128", "Z": "1"}
    assert list(shown) == sorted(shown)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--api-key", "abc", "--port", "80"], ["--api-key", HIDDEN, "--port", "80"]),
        (["--api-key=abc"], [f"--api-key={HIDDEN}"]),
        (["HF_TOKEN=abc", "vllm", "serve"], [f"HF_TOKEN={HIDDEN}", "vllm", "serve"]),
        (["--api-key", "a", "b", "--x"], ["--api-key", HIDDEN, HIDDEN, "--x"]),
        (["--header", "Authorization: Bearer abc"], ["--header", HIDDEN]),
        (["--max-num-batched-tokens", "8192"], ["--max-num-batched-tokens", "8192"]),
        (["--base-url", "http://u:p@host/v1"], ["--base-url", "***@host/v1"]),
    ],
)
def test_command(words: list[str], shown: list[str]) -> None:
    assert redacted_command(words) == shown
