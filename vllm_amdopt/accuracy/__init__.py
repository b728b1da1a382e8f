"""The accuracy checks: logits replayed through vLLM, and tasks over HTTP; they measure no speed."""
