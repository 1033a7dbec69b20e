# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Run a training script under FSDP or DeepSpeed on CPU processes: `torchrun tests/sharded_on_cpu.py script.py ...` with the
environment that `accelerate launch` sets for them.

PyTorch and DeepSpeed can do that, but accelerate turns to them on GPUs only, and leaves a run on the CPU unsharded without
a word. All that this changes is what accelerate takes the kind of the processes for.
"""

import os
import runpy
import sys
from pathlib import Path

from accelerate.state import DistributedType, PartialState


deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED if deepspeed else DistributedType.MULTI_GPU
os.environ["ACCELERATE_USE_CPU"] = "false" if deepspeed else "true"

sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
