"""What only lists, checks and describes starts at once, because nothing heavy is imported; and the kernel is small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "triton", "zarr", "numpy", "diffusers", "PIL", "safetensors")
SCRIPT = f"""
import contextlib, io, sys

def heavy():
    return [name for name in {HEAVY!r} if name in sys.modules]

from kolors_kernel import cli, discover
from kolors_kernel.errors import KolorsError

def run(*arguments):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            code = cli.main(list(arguments))
        except SystemExit as stopped:
            code = stopped.code
    if heavy():
        sys.exit(f"{{' '.join(arguments)}} imports {{', '.join(heavy())}}")
    return code, said.getvalue()

registry = discover()
for arguments in (["--help"], ["check", "--help"], ["plugins"], ["components"], ["components", "--json"]):
    assert run(*arguments) == (0, ""), arguments
for kind, name in registry.components:
    assert run("describe", kind, name) == (0, ""), (kind, name)
for name in registry.recipe_names():
    code, said = run("check", name)
    assert code == 0, said
assert run("check", "no_such_recipe")[0] == 2
print(len(registry.components), len(registry.recipe_names()))
"""


def test_no_listing_checking_or_describing_imports_anything_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    components, recipes = map(int, done.stdout.split())
    assert components > 20
    assert recipes > 0
