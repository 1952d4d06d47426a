"""Width, seconds and memory of each method on the same input sets: the table of README's "How to choose a domain".

usage: python tests/bench/choose_a_domain.py INSTANCES_DIR [--methods M ...]

Per network the mean width of the outputs' bounds over the first box of a property, the seconds of one call after a
first one (one thread, float32) and the memory of the process above what loading took. Every method runs in a process
of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

NETWORKS = {
    "ACAS Xu: 5 inputs, 6 x 50 ReLU": (
        "acasxu/onnx/ACASXU_run2a_1_1_batch_2000.onnx.gz", "acasxu/vnnlib/prop_3.vnnlib.gz"
    ),
    "OVAL21 base: 3,072 inputs, 2 conv + 2 dense": (
        "oval21/onnx/cifar_base_kw.onnx.gz",
        "oval21/vnnlib/cifar_base_kw-img8194-eps0.018300653594771243.vnnlib.gz",
    ),
    "ERAN: 784 inputs, 6 x 200 sigmoid": (
        "eran/onnx/ffnnSIGMOID__Point_6x200.onnx.gz", "eran/vnnlib/mnist_spec_idx_7167_eps_0.01200.vnnlib.gz"
    ),
}  # fmt: skip
METHODS = (
    "interval", "hybrid-zonotope", "zonotope & interval", "forward & interval", "crown-ibp", "cap", "crown", "sdp-crown",
    "alpha-crown", "alpha-crown(share=boxes)", "alpha-crown(intermediate=True)",
)  # fmt: skip
LIMIT = 120  # seconds of one call


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("instances", type=Path)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--one", nargs=3, metavar=("ONNX", "VNNLIB", "METHOD"), help="measure one call, print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    print("| method | " + " | ".join(NETWORKS) + " |\n|---" + "|---" * len(NETWORKS) + "|")
    for method in options.methods:
        cells = []
        for onnx, vnnlib in NETWORKS.values():
            files = [str(options.instances / f) for f in (onnx, vnnlib)]
            command = [sys.executable, __file__, str(options.instances), "--one", *files, method]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=3 * LIMIT)
                found = json.loads(done.stdout) if done.returncode == 0 else None
            except subprocess.TimeoutExpired:
                found = None
            cells.append("-" if found is None else "{width:.3g}, {seconds:.2g} s, {mb:.0f} MB".format(**found))
        print(f"| `{method}` | " + " | ".join(cells) + " |", flush=True)


def measure(onnx: str, vnnlib: str, method: str) -> dict:
    import numpy as np
    import torch

    import absdom
    from absdom import api

    torch.set_num_threads(1)
    task = api.read_task(onnx, vnnlib)
    compiled = absdom.compile(task.graph, method)
    box = task.property.inputs.select(np.arange(1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    with torch.no_grad():
        while len(seconds) < 3 and sum(seconds) < LIMIT / 3:
            started = time.perf_counter()
            found = compiled.bounds(box)
            seconds.append(time.perf_counter() - started)
    mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"width": float((found.upper - found.lower).mean()), "seconds": min(seconds), "mb": mb}


if __name__ == "__main__":
    main()
