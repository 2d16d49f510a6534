"""`import torchfastnorm` costs little beside `import torch`."""

from __future__ import annotations

import subprocess
import sys

LIMIT = 0.3  # seconds of CPU time, which other processes hardly change; 0.02 to 0.1 where it was measured
PROGRAM = """
import time, torch
begin = time.process_time()
import torchfastnorm
print(time.process_time() - begin)
"""


def test_import_time() -> None:
    def once() -> float:
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    times = [once()]
    while min(times) >= LIMIT and len(times) < 3:
        times.append(once())
    assert min(times) < LIMIT, times
