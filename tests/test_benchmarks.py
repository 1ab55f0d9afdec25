"""benchmarks.full_size measures what it says, and goes on when a form of llama.cpp crashes."""

import json
import sys
from pathlib import Path

import pytest
import torch

import workbench as wb
from benchmarks import full_size
from benchmarks.child import Child, WorkerEnded
from benchmarks.token_bytes import token_bytes
from benchmarks.workbench_worker import WorkbenchWorker
from tests.checkpoints import CONFIG
from workbench.model.checkpoints import load

# A worker that replies with constants. The name of its file says when it ends.
FAKE = """
import json, os, resource, signal, sys
crashes = {"--no-repack": "exits", "loads": "killed"}
mode = next((how for part, how in crashes.items() if any(part in a for a in sys.argv)), "")
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if mode == "killed" and "--no-repack" not in sys.argv:
    os.kill(os.getpid(), signal.SIGSEGV)
parts = {"experts": 1.0, "attention": 1.0}
memory = {"peak": 1, "resident": 1, "anonymous": 1, "file": 0}
keys = {"4": 1, "8": 1}
row = {"attention": 2, "experts": 1, "unembedding": 1, "keys": keys}
replies = {
    "about": {"text": "fake", "d_vocab": 50, "n_layers": 2}, "reset": {}, "memory": memory, "parts": parts,
    "prefill": {"seconds": [1.0, 1.0], "logits": [1.0, 2.0]}, "start_generation": {},
    "decode": {"seconds": [[1.0, 1.0]]}, "generate": {"seconds": [[1.0, 1.0]]},
    "reads": {"generate": row, "all logits": row},
}
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    request = json.loads(line)["do"]
    if mode == "exits" and request == "decode":
        sys.exit(3)
    print(json.dumps(replies[request]), flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path) -> str:
    """A program that ignores its arguments' meaning and serves constants, as an interpreter with llama.cpp would."""
    file = tmp_path / "fake"
    file.write_text(f"#!{sys.executable}\n{FAKE}")
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, fake: str, tmp_path: Path):
    """Runs the command with fake workers of both kinds, for these forms of llama.cpp."""
    monkeypatch.setattr(full_size, "READ", 1 << 16)
    monkeypatch.setattr(full_size, "workbench_child", lambda args, environment=None: Child(fake))

    def run(*forms: str) -> None:
        sizes = ["--prefill", "8", "--contexts", "4", "--decode", "1", "--rounds", "1", "--no-trace"]
        command = ["full_size", "--model", "m", "--llama", fake, *forms, *sizes, "--json", str(tmp_path / "out.json")]
        monkeypatch.setattr(sys, "argv", command)
        full_size.main()

    return run


def measured(tmp_path: Path) -> dict:
    """What the JSON has of each form."""
    return json.loads((tmp_path / "out.json").read_text())["results"]


def test_a_crash_of_one_form_is_reported_in_its_place_and_the_other_forms_are_measured(run, tmp_path: Path, capsys):
    run("--gguf-q8", "loads.gguf", "--gguf-bf16", "bf16.gguf")
    results = measured(tmp_path)
    assert results["llama.cpp, Q8_0"] == {"ended": "ended by signal 11 (SIGSEGV) while loading"}
    assert results["llama.cpp, Q8_0, not repacked"] == {"ended": "ended with code 3 while running 'decode'"}
    assert results["llama.cpp, bf16"]["decode"]["4"]["seconds"].keys() == {"workbench", "peer", "all logits", "read"}
    printed = capsys.readouterr().out
    assert "against llama.cpp, Q8_0: ended by signal 11 (SIGSEGV) while loading" in printed
    assert "against llama.cpp, bf16: time" in printed


def test_the_exit_status_is_1_if_no_form_could_be_measured(run, tmp_path: Path):
    with pytest.raises(SystemExit, match="no form could be measured"):
        run("--gguf-q8", "loads.gguf")
    assert measured(tmp_path).keys() == {"llama.cpp, Q8_0", "llama.cpp, Q8_0, not repacked"}


def test_an_error_in_a_reply_ends_the_worker_and_is_the_reason(tmp_path: Path):
    file = tmp_path / "worker.py"
    file.write_text(
        """print('{"ready": true}', flush=True); input(); print('{"error": "KeyError: 1"}', flush=True); input()"""
    )
    child = Child(sys.executable, str(file))
    with pytest.raises(WorkerEnded, match="failed with KeyError: 1 while running 'about'"):
        child("about")
    assert child.process.poll() is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wb.synth(CONFIG, tmp_path_factory.mktemp("synth") / "m")


@pytest.fixture(scope="module")
def worker(folder: Path):
    with torch.enable_grad():  # the worker switches gradients off for its process
        yield WorkbenchWorker(str(folder), torch.get_num_threads(), "fast")


def test_the_row_generate_decodes_the_tokens_of_model_generate(worker: WorkbenchWorker):
    prompt = [1, 2, 3]
    worker.start_generation(prompt)
    seconds = [worker.generate(2)["seconds"], worker.generate(3)["seconds"]]
    assert [len(s) for s in seconds] == [2, 3]
    assert worker.generation is not None
    expected = worker.model.generate(prompt, max_tokens=6, record="residuals")
    assert worker.generation.tokens == [int(t) for t in expected.tokens]


def test_parts_leave_the_cache_of_the_other_rows_as_it_is(worker: WorkbenchWorker):
    worker.start_generation([1, 2, 3])
    assert worker.cache is not None
    worker.decode([5])
    length = worker.cache.length()
    worker.parts([5, 6], cached=True)
    assert worker.cache.length() == length == 5


def test_a_token_reads_all_weights_but_the_embedding_and_the_other_experts(folder: Path):
    checkpoint = load(folder, dtype=torch.bfloat16, memory="small")  # experts stay in MXFP4
    c, weights = checkpoint.config, checkpoint.weights
    read = token_bytes(c, weights, "all logits", [1, 100])
    stored = read["attention"] + read["unembedding"] + read["experts"] * c.n_experts / c.n_active + weights.embed.nbytes
    headers = 0.02  # of the files; some vectors are held in fp32
    assert stored == pytest.approx(sum(file.stat().st_size for file in folder.glob("*.safetensors")), rel=headers)
    per_position = 2 * c.n_kv_heads * c.d_head * 2
    assert read["keys"] == {1: 4 * per_position, 100: (2 * 100 + 2 * c.window) * per_position}
