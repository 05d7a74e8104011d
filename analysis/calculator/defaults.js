// What `python -m analysis predict` computes, for one pipeline rank, from tables that Python has filled in: here vLLM's
// defaults, in factors.js the fitted terms, in predict.js the answer.
//
// Everything that needs a model's config.json is in `data`, exact: weights and KV layout by quantization and
// tensor-parallel size, and the shape that drives the fitted terms. Here is the rest: vLLM's defaults by version
// (analysis/defaults.py), the choice and the evaluation of calibrations (analysis/calibration.py), the budget, the
// intervals and the verdict (analysis/predict/answer.py). Order of operations and names follow those files, and
// tests/browser compares the two on the same requests. Sizes are bytes; all of them stay far below 2^53.

const GIB = 2 ** 30;
const BLOCK_TOKENS = 16;
const ENOUGH_REQUESTS = 2;
const AUTO_LENGTH = -1;
const TERMS = ["activation", "cuda_graph", "cuda_graph_estimate", "non_torch", "context", "runtime"];
const WORST = { exact: 0, calibrated: 1, extrapolated: 2 };

class RequestError extends Error {
  constructor(field, sentence) {
    super(sentence);
    this.field = field;
  }
}

const sum = (numbers) => numbers.reduce((all, one) => all + one, 0);
const ceilDiv = (a, b) => Math.ceil(a / b);
// Two decimals as Python writes them: halves (n/8 is where a double has them) go to the even neighbour.
function fixed2(x) {
  const tie = Number.isInteger(x * 8) && (x * 8) % 2 !== 0;
  return tie ? (2 * Math.round((x * 100) / 2) / 100).toFixed(2) : x.toFixed(2);
}
const gib = (bytes) => `${fixed2(bytes / GIB)} GiB`;
const general = (x) => String(Number(x.toPrecision(6)));
const exact = (value) => ({ value, low: value, high: value, basis: "exact" });
const worst = (estimates) =>
  estimates.reduce((found, one) => (WORST[one.basis] > WORST[found] ? one.basis : found), "exact");

// `start` + plus - minus; independent errors add in quadrature, each side by itself.
function total(plus, minus, start) {
  const value = start + sum(plus.map((one) => one.value)) - sum(minus.map((one) => one.value));
  const below = [...plus.map((one) => one.value - one.low), ...minus.map((one) => one.high - one.value)];
  const above = [...plus.map((one) => one.high - one.value), ...minus.map((one) => one.value - one.low)];
  return {
    value, low: value - Math.hypot(...below), high: value + Math.hypot(...above), basis: worst([...plus, ...minus]),
  };
}

// Versions.

function parseVersion(text) {
  const numbers = [];
  for (const piece of text.replace(/^v/, "").split("+")[0].split("-")[0].split(".")) {
    const digits = /^\d*/.exec(piece)[0];
    if (!digits) break;
    numbers.push(Number(digits));
  }
  if (numbers.length < 2)
    throw new RequestError("vllm_version", `vllm_version is '${text}', not a version such as ${DATA.vllm_version}`);
  return numbers;
}

// Compares like tuples: a version that ends earlier is the smaller one.
function atLeast(version, ...bound) {
  for (let i = 0; i < bound.length; i++) {
    if (i >= version.length) return false;
    if (version[i] !== bound[i]) return version[i] > bound[i];
  }
  return true;
}
const minorOf = (version) => version[0] * 100 + version[1];
// Tables of [first minor release, what holds from there on].
const asOf = (changes, version) => changes.filter(([since]) => since <= minorOf(version)).at(-1)[1];

function versionNote(version) {
  const [oldest, newest] = DATA.versions;
  const head = version.slice(0, 2);
  if (atLeast(head, ...oldest) && !(atLeast(head, ...newest) && head.join() !== newest.join())) return null;
  const older = !atLeast(head, ...oldest);
  return `vLLM ${version.join(".")} is ${older ? "older" : "newer"} than the releases whose defaults are known ` +
    `(${oldest.join(".")} to ${newest.join(".")}); those of ${(older ? oldest : newest).join(".")} are applied`;
}

// vLLM's defaults.

function batchDefaults(version, device) {
  if (atLeast(version, 0, 28) && device.nvml_bytes >= 160 * GIB) return [1024, 16384];
  const small = atLeast(version, 0, 9) && device.title.toLowerCase().includes("a100");
  return device.nvml_bytes >= 70 * GIB && !small ? [1024, 8192] : [256, 2048];
}

function resolveBatch(version, [seqs, tokens], request, length) {
  seqs = request.max_num_seqs ?? seqs;
  if (request.max_num_batched_tokens != null) tokens = request.max_num_batched_tokens;
  else if (atLeast(version, 0, 11, 1)) tokens = Math.min(tokens, seqs * length);
  if (request.max_num_seqs == null && atLeast(version, 0, 10, 1)) seqs = Math.min(seqs, tokens);
  return { seqs, tokens };
}

function captureSizes(version, batch, blackwell, most) {
  const limit = batch.tokens;
  const range = (from, to, step) => Array.from({ length: Math.max(Math.ceil((to - from) / step), 0) }, (_, i) => from + i * step);
  const old = (top) => [1, 2, 4, ...range(8, top + 1, 8)].filter((size) => size <= limit);
  if (!atLeast(version, 0, 10, 1)) return old(most || 512);
  const ceiling = blackwell && atLeast(version, 0, 28) ? 1024 : 512;
  let top = most ?? Math.min(2 * batch.seqs, ceiling);
  if (!atLeast(version, 0, 11, 1)) return old(top);
  const decode = atLeast(version, 0, 29) && most == null && batch.seqs <= top ? [batch.seqs] : [];
  top = Math.min(top, limit);
  const found = [1, 2, 4].filter((size) => size <= top);
  found.push(...range(8, Math.min(top + 1, 256), 8), ...range(256, top + 1, 16));
  if (atLeast(version, 0, 20, 1) && limit <= top) found.push(limit);
  found.push(...decode.filter((size) => size <= limit));
  return [...new Set(found)].sort((a, b) => a - b);
}

function graphCount(mode, sizes, seqs) {
  const decode = sizes.filter((size) => size <= seqs).length;
  return { NONE: 0, PIECEWISE: sizes.length }[mode] ?? sizes.length + decode;
}

function deviceOf(request) {
  const own = request.gpu_total_gib == null ? null : Math.round(request.gpu_total_gib * GIB);
  const found = DATA.gpus.find((gpu) => gpu.name === request.gpu);
  if (!found && own == null)
    throw new RequestError("gpu_total_gib", "gpu_total_gib is missing: a GPU that is not in the list needs its total memory");
  if (!found) return { name: "unknown", title: "unknown", total_bytes: own, nvml_bytes: own, blackwell: false };
  return own == null ? found : { ...found, total_bytes: own, nvml_bytes: own };
}

function resolve(request, model, form) {
  const version = parseVersion(request.vllm_version);
  const note = versionNote(version);
  const device = deviceOf(request);
  const [standard, most] = asOf(model.lengths, version);
  const auto = request.max_model_len === AUTO_LENGTH;
  const length = request.max_model_len == null || auto ? standard : request.max_model_len;
  const batch = resolveBatch(version, batchDefaults(version, device), request, length);
  const mode = request.enforce_eager ? "NONE" : atLeast(version, 0, 11) ? "FULL_AND_PIECEWISE" : "PIECEWISE";
  const runner = asOf(form.runners, version);
  const largest = model.architecture === "GptOssForCausalLM" ? 1024 : null;
  const sizes = mode === "NONE" ? [] : captureSizes(version, batch, device.blackwell, largest);
  const steps = atLeast(version, 0, 26) ? 2 : 1;
  const reserves = atLeast(version, 0, 20) && !(runner === "v2" && !atLeast(version, 0, 29));
  return {
    version, version_text: request.vllm_version.replace(/^v/, ""), device,
    notes: note ? [note] : [],
    kv_cache_dtype: request.kv_cache_dtype ?? "auto",
    tensor_parallel_size: request.tensor_parallel_size,
    gpu_memory_utilization: request.gpu_memory_utilization ?? (atLeast(version, 0, 20) ? 0.92 : 0.9),
    max_model_len: length, length_limit: most, auto_length: auto,
    max_num_seqs: batch.seqs, max_num_batched_tokens: batch.tokens, in_flight_tokens: steps * batch.tokens,
    enforce_eager: request.enforce_eager, block_size: request.block_size ?? BLOCK_TOKENS,
    cudagraph_mode: mode, cudagraph_sizes: sizes.length, cudagraph_largest: Math.max(0, ...sizes),
    graph_count: graphCount(mode, sizes, batch.seqs),
    runner, estimate_in_budget: mode !== "NONE" && reserves,
    context_in_budget: !atLeast(version, 0, 9),
    null_block_reserved: atLeast(version, 0, 29),
    capacity_is_derived: atLeast(version, 0, 22),
  };
}
