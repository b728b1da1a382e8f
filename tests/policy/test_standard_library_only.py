"""The policy and the command line need nothing but Python, and importing them does nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.policy.situations import CONFIGS

ROOT = Path(__file__).resolve().parents[2]

PLAN = """
from pathlib import Path
import json
from vllm_amdopt.hardware import virtual
from vllm_amdopt.policy.model_facts import model_facts
from vllm_amdopt.policy.plan import Situation, make_plan
from vllm_amdopt.policy.render import render_plan_table
config = json.loads(Path(PATH).read_text())["config"]
assert render_plan_table(make_plan(Situation(model_facts(config), virtual("gfx942"))))
"""
COMMANDS = """
from vllm_amdopt.cli import main
assert main(["features"]) == 0
assert main(["--help"]) == 0
"""
AT_IMPORT = """
import vllm_amdopt, vllm_amdopt.cli
assert not [name for name in sys.modules if name.startswith("vllm_amdopt.policy")]
assert "vllm_amdopt.hardware" not in sys.modules
"""
CHECK = """
foreign = {name.partition(".")[0] for name in sys.modules} - before
ours = {"vllm_amdopt"}
assert foreign <= sys.stdlib_module_names | ours, sorted(foreign - sys.stdlib_module_names - ours)
"""


@pytest.mark.parametrize(
    "code", [PLAN, COMMANDS, AT_IMPORT], ids=["a plan", "the commands", "importing"]
)
def test_nothing_but_the_standard_library(code: str) -> None:
    code = code.replace("PATH", repr(str(CONFIGS / "llama-3.1-8b.json")))
    # What site-packages' .pth files import at start is not ours to answer for.
    program = f"import sys\nbefore = {{n.partition('.')[0] for n in sys.modules}}\n{code}{CHECK}"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
