"""Stands in for `vllm serve`: a completions endpoint that knows the answers; not a test.

The first argument, its "model", is a file of JSON lines with `prompt` and `answer`. The environment
says how good it is: MOCK_WRONG=N, every n-th item is answered wrongly; MOCK_DIE=N, it ends at the
n-th request; MOCK_REFUSE=1, it does not come up.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def main() -> None:
    if "MOCK_REFUSE" in os.environ:
        sys.exit("ValueError: this model does not fit the memory")
    items = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    answers = {item["prompt"]: item["answer"] for item in items}
    order = {item["prompt"]: number for number, item in enumerate(items, 1)}
    wrong, die = (int(os.environ.get(f"MOCK_{name}", "0")) for name in ("WRONG", "DIE"))
    name = option("--served-model-name")
    asked = 0
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer({"data": [{"id": name}]})

        def do_POST(self) -> None:
            nonlocal asked
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                asked += 1
                number = asked
            if die and number >= die:
                print("RuntimeError: the GPU went away", flush=True)
                os._exit(3)
            prompt = body["prompt"]
            prompt = prompt[0] if isinstance(prompt, list) else prompt
            text = answers[prompt]
            if wrong and order[prompt] % wrong == 0:
                text = "nonsense"
            assert body["model"] == name and body["temperature"] == 0
            self.answer({"choices": [{"index": 0, "text": f" {text}"}]})

        def answer(self, content: dict[str, object]) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Handler).serve_forever()


if __name__ == "__main__":
    main()
