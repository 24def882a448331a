import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "data_processing" / "make_tiny_tokenizer.py"
SHIPPED = ROOT / "jaxvla" / "data" / "text" / "assets" / "tiny_tokenizer"


def make(output: pathlib.Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", str(SCRIPT), f"--output_path={output}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_shipped_tokenizer_is_what_the_script_makes(tmp_path):
    result = make(tmp_path / "made")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"wrote 1000 tokens to {tmp_path / 'made'}\n"
    made = {file.name: file.read_bytes() for file in (tmp_path / "made").iterdir()}
    assert made == {file.name: file.read_bytes() for file in SHIPPED.iterdir()}


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    result = make(tmp_path / "file")
    assert result.returncode == 1
    assert result.stderr.strip().startswith("error: cannot write")
    assert result.stderr.count("\n") == 1
