"""A trace can be loaded, verified, analyzed and shown where importing torch fails."""

import subprocess
import sys

import workbench as wb

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it raises from here on
import workbench as wb
from workbench.traces import verify
from workbench.views.page import page

trace = wb.load(sys.argv[1])
assert verify(sys.argv[1]).ok and trace.verified
assert all(f["status"] != "fails" for f in wb.verify(trace))
assert trace.text(channel="final") == "It is 385." and len(wb.steps(trace)) == 3
rows = wb.attention.pattern(trace, layer=1, head=2).values.sum(-1) + trace["sink", 1][2]
assert abs(rows - 1).max() < 1e-6
assert "It is 385." in trace.text() and "</html>" in page(wb.views.score_sheet(trace))
print(trace.id)
"""


def test_a_trace_can_be_loaded_verified_and_analyzed_without_torch(tmp_path):
    trace = wb.trace("What is 247+138?")
    path = trace.save(tmp_path / "first.trace")
    ran = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, path], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == trace.id
