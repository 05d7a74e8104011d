"""Excerpts of real logs, and what is known of them. Each names the public page its lines are from."""

# The settings line: github.com/kserve/kserve/pull/4470 (vLLM 0.8.5.post1), its model replaced by one of the next
# source's size; the memory lines, in a terminal's frame: github.com/kubernetes-sigs/gateway-api-inference-extension/
# pull/550; the last two: github.com/generative-computing/mellea/pull/416.
V0_ENGINE = """\
INFO 05-14 17:44:22 [llm_engine.py:240] Initializing a V0 LLM engine (v0.8.5.post1) with config: model='codellama/CodeLlama-7b-hf', speculative_config=None, tokenizer='codellama/CodeLlama-7b-hf', skip_tokenizer_init=False, tokenizer_mode=auto, revision=None, trust_remote_code=False, dtype=torch.bfloat16, max_seq_len=4096, download_dir=None, load_format=auto, tensor_parallel_size=1, pipeline_parallel_size=1, disable_custom_all_reduce=False, quantization=None, enforce_eager=False, kv_cache_dtype=auto,  device_config=cuda, chunked_prefill_enabled=False, compilation_config={"splitting_ops":[],"compile_sizes":[],"cudagraph_capture_sizes":[256,248,240,232,224,216,208,200,192,184,176,168,160,152,144,136,128,120,112,104,96,88,80,72,64,56,48,40,32,24,16,8,4,2,1],"max_capture_size":256}, use_cac
│ INFO 03-21 20:15:45 [worker.py:267] Memory profiling takes 34.26 seconds                             │
│ INFO 03-21 20:15:45 [worker.py:267] the current vLLM instance can use total_gpu_memory (79.19GiB) x gpu_memory_utilization (0.90) = 71.27GiB        │
│ INFO 03-21 20:15:45 [worker.py:267] model weights take 12.55GiB; non_torch_memory takes 0.16GiB; PyTorch activation peak memory takes 2.38GiB; the rest of the memory reserved for KV Cache is 56.18GiB.        │
│ INFO 03-21 20:15:46 [executor_base.py:111] # cuda blocks: 7191, # CPU blocks: 512                    │
INFO 02-11 10:17:59 [model_runner.py:1671] Graph capturing finished in 2 secs, took 0.13 GiB
INFO 02-11 10:17:59 [llm_engine.py:428] init engine (profile, create kv cache, warmup model) took 5.13 seconds
"""  # noqa: E501

# Four ranks of one engine, of which two are kept: github.com/vllm-project/vllm/pull/14447.
V0_RANKS = """\
(VllmWorkerProcess pid=521) INFO 04-12 08:21:19 [worker.py:267] model weights take 21.21GiB; non_torch_memory takes 0.20GiB; PyTorch activation peak memory takes 0.37GiB; the rest of the memory reserved for KV Cache is 1.57GiB.
(VllmWorkerProcess pid=507) INFO 04-12 08:21:19 [worker.py:267] the current vLLM instance can use total_gpu_memory (23.58GiB) x gpu_memory_utilization (0.99) = 23.35GiB
"""  # noqa: E501

# A V1 engine of vLLM 0.10.2, without graphs; memory lines that every V1 version has.
V1_ENGINE = """\
(APIServer pid=291) INFO 09-21 23:16:04 [api_server.py:1882] vLLM API server version 0.10.2
(APIServer pid=291) INFO 09-21 23:16:04 [utils.py:328] non-default args: {'model_tag': 'TinyLlama/TinyLlama-1.1B-Chat-v1.0', 'host': '0.0.0.0', 'model': 'TinyLlama/TinyLlama-1.1B-Chat-v1.0', 'enforce_eager': True, 'gpu_memory_utilization': 0.85}
(APIServer pid=291) INFO 09-21 23:16:12 [__init__.py:745] Resolved architecture: LlamaForCausalLM
(APIServer pid=291) INFO 09-21 23:16:13 [scheduler.py:222] Chunked prefill is enabled with max_num_batched_tokens=2048.
(EngineCore_0 pid=357) INFO 09-21 23:16:19 [core.py:75] Initializing a V1 LLM engine (v0.10.2) with config: model='TinyLlama/TinyLlama-1.1B-Chat-v1.0', speculative_config=None, tokenizer='TinyLlama/TinyLlama-1.1B-Chat-v1.0', skip_tokenizer_init=False, tokenizer_mode=auto, revision=None, override_neuron_config={}, dtype=torch.bfloat16, max_seq_len=2048, download_dir=None, load_format=auto, tensor_parallel_size=1, pipeline_parallel_size=1, disable_custom_all_reduce=False, quantization=None, enforce_eager=True, kv_cache_dtype=auto, device_config=cuda, chunked_prefill_enabled=True, compilation_config={"level":0,"cudagraph_mode":0,"use_cudagraph":true,"cudagraph_capture_sizes":[],"max_capture_size":0}
(EngineCore_0 pid=357) INFO 09-21 23:16:23 [gpu_model_runner.py:1975] Model loading took 2.0513 GiB and 1.521577 seconds
(EngineCore_0 pid=357) INFO 09-21 23:16:24 [gpu_worker.py:276] Available KV cache memory: 101.47 GiB
(EngineCore_0 pid=357) INFO 09-21 23:16:24 [kv_cache_utils.py:850] GPU KV cache size: 4,836,272 tokens
(EngineCore_0 pid=357) INFO 09-21 23:16:24 [kv_cache_utils.py:854] Maximum concurrency for 2,048 tokens per request: 2361.46x
(EngineCore_0 pid=357) INFO 09-21 23:16:26 [core.py:217] init engine (profile, create kv cache, warmup model) took 3.81 seconds
(APIServer pid=291) INFO 09-21 23:16:27 [loggers.py:142] Engine 000: vllm cache_config_info with initialization after num_gpu_blocks is: 302267
"""  # noqa: E501

# The budget's summary at DEBUG level, two ranks, vLLM 0.11.
V1_BUDGET = """\
(Worker_TP1 pid=1806414) INFO 10-23 15:14:56 [gpu_model_runner.py:3118] Graph capturing finished in 25 secs, took 2.37 GiB
(Worker_TP1 pid=1806414) INFO 10-23 15:14:56 [gpu_worker.py:391] Free memory on device (139.21/139.81 GiB) on startup. Desired GPU memory utilization is (0.9, 125.83 GiB). Actual usage is 74.28 GiB for weight, 5.58 GiB for peak activation, 1.38 GiB for non-torch memory, and 2.37 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=45175492096` to fit into requested memory, or `--kv-cache-memory=59540753920` to fully utilize gpu memory. Current kv cache memory in use is 47878721024 bytes.
"""  # noqa: E501

# Llama 3.1 8B on an L40S with vLLM 0.8.5, without a settings line: github.com/vllm-project/vllm/pull/17122.
V1_SHORT = """\
INFO 04-24 16:33:00 [gpu_model_runner.py:1316] Model loading took 14.9889 GiB and 3.652170 seconds
INFO 04-24 16:33:13 [kv_cache_utils.py:634] GPU KV cache size: 158,656 tokens
INFO 04-24 16:33:13 [kv_cache_utils.py:637] Maximum concurrency for 32,768 tokens per request: 4.84x
"""
