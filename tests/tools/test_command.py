from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import command

ROOT = Path(__file__).parents[2]
_WITHOUT_TORCH = {"mesh.errors", "mesh.body", "mesh.joints", "data.detector_files"}


def said(code: str, **environment: str) -> str:
    """What a fresh Python prints."""
    given = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**given, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_command_line_makes_threads_wait_patiently_before_torch_is_there() -> None:
    sources = [path.read_text() for path in sorted((ROOT / "tools").glob("*.py"))]
    sources = [source for source in sources if "command.run(main)" in source]
    assert len(sources) > 5
    for source in sources:
        lines = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
        ours = [line for line in lines if line.split()[1].split(".")[0] in ("torch", "gcn", "data", "mesh", "tools")]
        first = next(k for k, line in enumerate(ours) if line.startswith("from tools import command"))
        assert {line.split()[1] for line in ours[:first]} <= _WITHOUT_TORCH


def test_waiting_threads_leave_the_processor_to_others_unless_the_user_wants_it_otherwise() -> None:
    code = "import tools.command, os; print(os.environ['OMP_WAIT_POLICY'], os.environ['KMP_BLOCKTIME'])"
    assert said(code) == "PASSIVE 0"
    assert said(code, OMP_WAIT_POLICY="ACTIVE", KMP_BLOCKTIME="200") == "ACTIVE 200"


def test_a_wrong_call_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    code = (
        "import sys; from tools import command, recover; "
        f"code = command.run(recover.main, [{str(tmp_path / 'a.png')!r}, '--format', 'stl', '--out', 'x']); "
        "print(code, 'torch' in sys.modules)"
    )
    assert said(code) == "2 False"


def test_garbage_collection_rests_while_a_command_starts_and_goes_on_afterwards() -> None:
    with pytest.raises(ZeroDivisionError), command.starting():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()
    gc.unfreeze()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("closed", "main"),
    [
        ("stdout", "command.run(lambda argv: print('x' * 9))"),
        ("stdout", "command.run(lambda argv: sys.exit(print('x')))"),
        ("stderr", "command.run(lambda argv: require(False, 'x'))"),
        ("stdout", "cli.main(['--help'])"),
        ("stderr", "cli.main(['nothing'])"),
    ],
)
def test_a_command_whose_reader_has_left_ends_without_a_word(closed: str, main: str, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = f"import sys; from mesh.errors import require; from tools import cli, command; sys.exit({main})"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writer}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([sys.executable, "-c", code], env=environment, **streams, check=False)
    os.close(writer)
    assert (done.returncode, done.stdout or b"", done.stderr or b"") == (141, b"", b"")
