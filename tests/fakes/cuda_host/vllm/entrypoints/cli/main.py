"""`python -m vllm.entrypoints.cli.main serve MODEL ...`: see the package."""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

GIB = 2**30
CONTEXT, WEIGHTS, GRAPHS, ACTIVATION = int(0.5 * GIB), int(14.25 * GIB), int(0.6 * GIB), 2 * GIB
TOTAL = 80 * GIB
LOCK = threading.Lock()


def use_gpu(used_bytes: int) -> None:
    """Show device memory, all of it this process's, in the fake NVML's state file."""
    with LOCK:
        _write_state(used_bytes)


def _write_state(used_bytes: int) -> None:
    path = Path(os.environ["FAKE_NVML_STATE"])
    kept = [line for line in path.read_text().splitlines() if not line.startswith(("gpu.0.used", "gpu.0.compute"))]
    mine = [f"gpu.0.compute {os.getpid()}:{used_bytes}"] if used_bytes else []
    new = path.with_name(path.name + ".engine")
    new.write_text("\n".join([*kept, f"gpu.0.used {used_bytes}", *mine]) + "\n")
    new.replace(path)


def flag(name: str) -> str | None:
    """The value of a flag on the command line."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None


class Handler(BaseHTTPRequestHandler):
    """/health, /metrics and a streamed /v1/completions."""

    protocol_version = "HTTP/1.1"
    serving_bytes = 0

    def log_message(self, *_):
        """No access log."""

    def do_GET(self):
        body = b"vllm:num_preemptions_total 0\n" if self.path == "/metrics" else b""
        self.send_response(200 if self.path in ("/health", "/metrics") else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions":
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        use_gpu(self.serving_bytes + ACTIVATION)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        prompt = len(request["prompt"])
        for n in range(1, request["max_tokens"] + 1):
            time.sleep(0.03)
            usage = {"prompt_tokens": prompt, "completion_tokens": n, "total_tokens": prompt + n}
            self._event(json.dumps({"choices": [{"text": "", "finish_reason": None}], "usage": usage}))
        self._event(json.dumps({"choices": [], "usage": usage}))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")
        use_gpu(self.serving_bytes)

    def _event(self, data: str) -> None:
        payload = f"data: {data}\n\n".encode()
        self.wfile.write(f"{len(payload):x}\r\n".encode() + payload + b"\r\n")
        self.wfile.flush()


def main() -> None:
    """Start as the CUDA engine does: weights, profile, pool, graphs, each shown in the log and on the device."""
    print(f"INFO 01-01 00:00:00 [entry.py:1] CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}")
    use_gpu(CONTEXT)
    time.sleep(0.15)
    use_gpu(CONTEXT + WEIGHTS)
    print("INFO 01-01 00:00:00 [gpu_model_runner.py:1] Model loading took 14.25 GiB memory and 3.00 seconds")
    if os.environ.get("FAKE_ENGINE_FAILS") == "oom":
        use_gpu(TOTAL - GIB)
        time.sleep(0.3)
        print("Traceback (most recent call last):\n  File \"engine.py\", line 1, in load_model\n"
              "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
              "79.19 GiB of which 1.00 GiB is free.", flush=True)  # fmt: skip
        use_gpu(0)
        sys.exit(1)
    fixed = flag("--kv-cache-memory-bytes")
    pool = int(fixed) if fixed else int(TOTAL * 0.92) - WEIGHTS - ACTIVATION
    print(f"INFO 01-01 00:00:00 [gpu_worker.py:1] Available KV cache memory: {pool / GIB:.2f} GiB")
    print(f"INFO 01-01 00:00:00 [kv_cache_utils.py:1] GPU KV cache size: {pool // 57344:,} tokens")
    Handler.serving_bytes = CONTEXT + WEIGHTS + pool + GRAPHS
    use_gpu(Handler.serving_bytes)
    print("INFO 01-01 00:00:00 [gpu_model_runner.py:1] Graph capturing finished in 5 secs, took 0.60 GiB", flush=True)
    server = ThreadingHTTPServer(("127.0.0.1", int(flag("--port"))), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
    if os.environ.get("FAKE_ENGINE_FAILS") != "leaves memory":
        use_gpu(0)


if __name__ == "__main__":
    main()
