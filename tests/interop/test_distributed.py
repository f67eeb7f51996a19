import os
import subprocess
import sys
from pathlib import Path


def test_two_processes_average_the_gradients_by_ddp_and_by_shards():
    script = Path(__file__).parent.parent / 'parallel_step.py'
    run = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', str(script)],
        capture_output=True, text=True, timeout=240,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo', 'PYTHONPATH': str(script.parent)})
    assert run.returncode == 0, run.stderr[-3000:]
