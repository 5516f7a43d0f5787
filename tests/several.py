"""Run several specs one after the other in the same ranks: python -m tests.several STEP --spec A,B (under torchrun).

Starting a process costs ten times what such a small training run does.
"""

import gc
import importlib
import sys

import torch.distributed as dist

from components.core.step import main

if __name__ == "__main__":
    dist.init_process_group("gloo")
    for uri in sys.argv[sys.argv.index("--spec") + 1].split(","):
        step = uri.rstrip("/").split("/")[-2].split("-")[0]
        module = importlib.import_module(f"components.{step}.__main__")
        if code := main(step, module.work, ["--spec", uri]):
            sys.exit(code)
        gc.collect()  # DeepSpeed's buffers, 2 GB an engine, hang in cycles
    dist.destroy_process_group()
