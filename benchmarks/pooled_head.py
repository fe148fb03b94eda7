"""What a training step's head costs in memory: logits of every position, or a running maximum over a few.

    python benchmarks/pooled_head.py [--texts 32] [--positions 256] [--hidden 768] [--vocabulary 32000]
        [--chunks 1 16 64] [--threads 1]

The head of a language model on random hidden states, log(1 + relu) and max over positions, forward and backward, in
float32 on the CPU, each variant in a process of its own. Printed is what its peak memory is above that of the same
process before the step, the time, and the largest difference of any gradient to that of the materialised logits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from evaluation import peak_since_reset, resident  # the neighbour, found because it lies beside this script

from rtk.retrieval.encoders.pooled_head import largest_logits


def step(sizes: dict[str, int], chunk: int, out: Path) -> dict[str, Any]:
    """One step; chunk 0 is the materialised form. Writes the gradients to `out`."""
    torch.set_num_threads(sizes["threads"])
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(sizes["texts"], sizes["positions"], sizes["hidden"], generator=generator, requires_grad=True)
    weight = torch.randn(sizes["vocabulary"], sizes["hidden"], generator=generator).mul_(0.02).requires_grad_()
    valid = torch.ones(sizes["texts"], sizes["positions"], dtype=torch.bool)
    before = resident()
    started = time.perf_counter()
    if chunk:
        largest = largest_logits(states, valid, weight, chunk=chunk)
    else:
        logits = torch.nn.functional.linear(states, weight)
        largest = logits.masked_fill(~valid[..., None], -torch.inf).max(dim=1).values
    torch.log1p(largest.relu()).mean(dim=0).square().sum().backward()
    seconds = time.perf_counter() - started
    grown = peak_since_reset() - before  # getrusage would say no less than the parent had when it started this process
    torch.save({"states": states.grad, "weight": weight.grad}, out)
    return {"megabytes": round(grown), "seconds": round(seconds, 2)}


def main() -> None:
    """Run every variant in a process of its own and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("texts", 32), ("positions", 256), ("hidden", 768), ("vocabulary", 32000), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    sizes = {name: getattr(chosen, name) for name in ("texts", "positions", "hidden", "vocabulary", "threads")}
    if chosen.only:
        print(json.dumps(step(sizes, int(chosen.only[0]), Path(chosen.only[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"--{name}={value}" for name, value in sizes.items()]
        for chunk in [0, *chosen.chunks]:
            out = Path(folder) / f"{chunk}.pt"
            command = [sys.executable, __file__, *settings, "--only", str(chunk), str(out)]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            ours, direct = torch.load(out), torch.load(Path(folder) / "0.pt")
            told["difference"] = max(float((ours[name] - direct[name]).abs().max()) for name in direct)
            print(json.dumps({"head": f"{chunk} positions at a time" if chunk else "all logits", **told}), flush=True)


if __name__ == "__main__":
    main()
