"""Method 3 without the kit: the bare library calls, for docs/measurements.md. Prints tokens/s after the first.

python tests/bare_llamacpp.py models/starter starter-q4_1.gguf
"""

import os
import sys
import time
from pathlib import Path

from tokenizers import Tokenizer
from xllamacpp import CommonParams, Server, llama_flash_attn_type

folder, gguf = Path(sys.argv[1]), sys.argv[2]
ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("Hello, who or what are you ?").ids
parameters = CommonParams()
parameters.model.path = str(folder / gguf)
parameters.n_ctx = 256
parameters.fit_params = False
parameters.verbosity = 0
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
parameters.n_parallel = 1
parameters.flash_attn_type = llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
parameters.warmup = False
parameters.n_gpu_layers = 0
server = Server(parameters)
times: list[float] = []
request = {"prompt": ids, "max_tokens": 50, "temperature": 0, "stream": True, "ignore_eos": True, "top_k": 1}
server.handle_completions(request, lambda chunk: times.append(time.perf_counter()))
times.pop()  # the last chunk has no token
print(f"{(len(times) - 1) / (times[-1] - times[0]):.1f}")
