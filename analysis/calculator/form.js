// The form around the arithmetic: reads the fields, shows the answer, keeps the settings in the address.

const PREFIX = "#calculator?";
const FIELDS = [...root.querySelectorAll("[data-field]")];
const byName = Object.fromEntries(FIELDS.map((field) => [field.dataset.field, field]));
const at = (name) => root.querySelector(`[data-out="${name}"]`);
const count = (x, places = 0) =>
  x.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
const span = (e, show) => (e.low === e.high ? "" : `${show(e.low)} – ${show(e.high)}`);
const two = (bytes) => count(bytes / GIB, 2);

// Nodes are made from text only: nothing that comes from a model's name or a calibration is ever markup.
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties))
    if (name === "class") element.className = value;
    else if (name === "style") Object.assign(element.style, value);
    else element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Reading the fields.

const STEPS = { k: 1e3, m: 1e6, g: 1e9, t: 1e12, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

function whole(name, text, atMost = Number.MAX_SAFE_INTEGER) {
  const found = /^([+-]?\d+(?:\.\d+)?)([kKmMgGtT]?)$/.exec(text);
  const value = found ? Number(found[1]) * (STEPS[found[2]] ?? 1) : NaN;
  if (!Number.isInteger(value))
    throw new RequestError(name, `${name} is '${text}', not a whole number such as 4096, 4k (4000) or 4K (4096)`);
  if (value < 1) throw new RequestError(name, `${name} is ${value}; it must be 1 or more`);
  if (value > atMost) throw new RequestError(name, `${name} is ${value}; it must be ${atMost} or less`);
  return value;
}

function real(name, text, atMost) {
  const value = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : NaN;
  if (Number.isNaN(value)) throw new RequestError(name, `${name} is '${text}', not a number`);
  if (value <= 0) throw new RequestError(name, `${name} is ${general(value)}; it must be above 0`);
  if (value > atMost) throw new RequestError(name, `${name} is ${general(value)}; it must be at most ${atMost}`);
  return value;
}

const KINDS = {
  whole: (name, text) => whole(name, text),
  length: (name, text) => (text.toLowerCase() === "auto" ? AUTO_LENGTH : whole(name, text)),
  share: (name, text) => real(name, text, 1),
  gib: (name, text) => real(name, text, 4096),
  text: (name, text) => text,
};

// The request, as `predict` takes it, and what stands in the fields; throws RequestError.
function read() {
  const request = {}, given = {};
  for (const field of FIELDS) {
    const name = field.dataset.field;
    if (field.type === "checkbox") {
      request[name] = field.checked;
      if (field.checked) given[name] = "1";
      continue;
    }
    const text = field.value.trim();
    if (text && text !== field.dataset.standard) given[name] = text;
    request[name] = text ? KINDS[field.dataset.kind](name, text) : null;
  }
  request.vllm_version ??= DATA.vllm_version;
  if (request.gpu === "other") request.gpu = null;
  return { request, given };
}

// The command line.

function command(request) {
  const model = DATA.models[request.model], form = request.quantization;
  const id = model.hub_id ?? request.model;
  const words = ["vllm serve"];
  let note = "";
  if (!form || DATA.plain[form]) words[0] += ` ${id}`;
  else if (form === "fp8") words[0] += ` ${id}`; // vLLM quantizes to this format itself, while loading
  else {
    words[0] += ` ./${id.split("/").at(-1)}-${form}`;
    note = `Needs a checkpoint of ${id} in this format (${DATA.quantizations[form]}): ` +
      "put its folder or hub name in place of the one that begins with ./";
  }
  const add = (flag, value) => value != null && words.push(`--${flag} ${value}`);
  if (form === "fp8") add("quantization", "fp8");
  if (DATA.plain[form]) add("dtype", DATA.plain[form]);
  if (request.tensor_parallel_size > 1) add("tensor-parallel-size", request.tensor_parallel_size);
  add("max-model-len", request.max_model_len === AUTO_LENGTH ? "auto" : request.max_model_len);
  add("max-num-seqs", request.max_num_seqs);
  add("max-num-batched-tokens", request.max_num_batched_tokens);
  add("gpu-memory-utilization", request.gpu_memory_utilization);
  add("kv-cache-memory-bytes", request.kv_cache_memory_bytes);
  if (request.kv_cache_dtype && request.kv_cache_dtype !== "auto") add("kv-cache-dtype", request.kv_cache_dtype);
  add("block-size", request.block_size);
  if (request.enforce_eager) words.push("--enforce-eager");
  return { text: words.join(" \\\n  "), note };
}

// Showing the answer.

const VERDICTS = { fits: "Fits", tight: "Tight", does_not_start: "Does not start" };
const PARTS = [ // they add up to the device's peak; colours are those of the report's other bars
  ["weights", "Weights", (a) => exact(a.weights_bytes), "--c1"],
  ["activation", "Activation peak", (a) => a.activation, "--c2"],
  ["non_torch", "Non-torch", (a) => a.non_torch, "--c3"],
  ["kv_pool", "KV pool", (a) => a.kv_pool, "--c5"],
  ["cuda_graph", "CUDA graphs", (a) => a.cuda_graph, "--c4"],
  ["runtime", "Load adds", (a) => a.runtime, "--c6"],
  ["context", "Context", (a) => a.context, "--c8"],
];

function showBar(a) {
  const capacity = a.settings.device.total_bytes;
  const scale = Math.max(capacity, a.device_peak.high, a.device_peak.value);
  const per = (bytes) => `${(100 * Math.max(bytes, 0)) / scale}%`;
  const bar = at("bar");
  bar.replaceChildren();
  let left = 0;
  for (const [key, title, of, colour] of PARTS) {
    const bytes = Math.max(of(a).value, 0);
    const part = make("div", { class: "c-part", "data-part": key, title: `${title}: ${two(bytes)} GiB` });
    Object.assign(part.style, { left: per(left), width: per(bytes), background: `var(${colour})` });
    bar.append(part);
    left += bytes;
  }
  const { low, high } = a.device_peak;
  bar.append(make("div", { class: "c-whisker", style: { left: per(low), width: per(high - low) } }));
  bar.append(make("div", { class: "c-mark c-budget", style: { left: per(a.budget_bytes) } }));
  bar.append(make("div", { class: "c-mark c-card", style: { left: per(capacity) } }));
  const peak = `${two(a.device_peak.value)} GiB (90 %: ${span(a.device_peak, two)})`;
  bar.setAttribute("aria-label", `Device peak ${peak} of ${two(capacity)} GiB`);
  const entry = (kind, text) => make("span", { class: "c-entry" }, make("i", { class: `c-key c-${kind}` }), text);
  at("bar-caption").replaceChildren(
    entry("card", `card ${two(capacity)} GiB`),
    entry("budget", `vLLM may fill ${two(a.budget_bytes)} GiB (${general(a.settings.gpu_memory_utilization)})`),
    entry("whisker", `peak ${peak}`),
  );
}

const swatch = (colour) => make("i", { class: "c-swatch", style: { background: `var(${colour})` } });

function showTerms(a) {
  const line = (name, e, colour, cls = "") => make("tr", { class: cls },
    make("th", { scope: "row" }, ...(colour ? [swatch(colour)] : []), name),
    make("td", {}, two(e.value)), make("td", { "data-basis": e.basis }, span(e, two)), make("td", {}, e.basis));
  const rows = PARTS.map(([, title, of, colour]) => line(title, of(a), colour));
  rows.push(line("Device peak", a.device_peak, null, "c-sum"));
  const free = a.settings.device.total_bytes - a.device_peak.value;
  rows.push(make("tr", {}, make("th", { scope: "row" }, free < 0 ? "Missing" : "Left free"),
    make("td", {}, two(Math.abs(free))), make("td", {}), make("td", {})));
  if (a.settings.estimate_in_budget) rows.push(line("Reserved for graphs", a.cuda_graph_estimate, null, "c-aside"));
  at("terms").replaceChildren(...rows);
}

function showFigures(a, typical) {
  const s = a.settings;
  const figure = (value, title, interval) => make("div", { class: "c-figure" },
    make("strong", {}, value), make("span", {}, title), make("small", {}, interval ? `90 %: ${interval}` : " "));
  const tokens = a.kv_cache_tokens, full = a.full_length_requests;
  const shown = [
    figure(count(Math.trunc(tokens.value)), "KV tokens", span(tokens, (x) => count(Math.trunc(x)))),
    figure(count(full.value, 2), `requests of ${count(s.max_model_len)} tokens at once`, span(full, (x) => count(x, 2))),
  ];
  const block = a.plan.bytes_per_block, need = (length) => a.blocks_per_request(length);
  const atOnce = (bytes, length) => Math.floor(Math.max(bytes, 0) / block) / need(length);
  const length = typical ?? s.max_model_len;
  if (typical != null) {
    const e = a.kv_pool;
    shown.push(figure(count(atOnce(e.value, length), 1), `requests of ${count(length)} tokens at once`,
      span({ low: atOnce(e.low, length), high: atOnce(e.high, length) }, (x) => count(x, 1))));
  }
  shown.push(figure(count(a.kv_bytes_per_token / 1024, a.kv_bytes_per_token % 1024 ? 2 : 0),
    `KiB of KV cache per token${s.tensor_parallel_size > 1 ? " and GPU" : ""}`, ""));
  at("figures").replaceChildren(...shown);
  const wanted = need(length) * block * s.max_num_seqs;
  const held = Math.min(Math.floor(atOnce(a.kv_pool.value, length)), s.max_num_seqs);
  at("load").textContent = a.kv_pool.value < block ? "" :
    `All ${count(s.max_num_seqs)} sequences at ${count(length)} tokens each would need ${two(wanted)} GiB of KV cache; ` +
    (held < s.max_num_seqs ? `the pool holds ${count(held)} of them, the others wait or are preempted.` : "the pool holds them.");
}

function showSettings(a) {
  const s = a.settings;
  const rows = [
    ["vLLM", `${s.version_text}, model runner ${s.runner}`],
    ["max-model-len", count(s.max_model_len)], ["max-num-seqs", count(s.max_num_seqs)],
    ["max-num-batched-tokens", count(s.max_num_batched_tokens)],
    ["gpu-memory-utilization", general(s.gpu_memory_utilization)],
    ["KV cache", `${s.kv_cache_dtype}, blocks of ${s.block_size} tokens`],
    ["CUDA graphs", s.enforce_eager ? "none (eager)" : `${s.cudagraph_mode}, ${s.cudagraph_sizes} sizes`],
    ["Factors", `${a.origin} (${a.basis})`],
  ];
  at("settings").replaceChildren(...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  at("warnings").replaceChildren(...a.warnings.map((text) => make("li", {}, text)));
  const empty = { max_model_len: s.max_model_len, max_num_seqs: s.max_num_seqs,
    max_num_batched_tokens: s.max_num_batched_tokens, gpu_memory_utilization: general(s.gpu_memory_utilization),
    block_size: s.block_size, gpu_total_gib: two(s.device.total_bytes), vllm_version: DATA.vllm_version,
    typical: s.max_model_len };
  for (const [name, value] of Object.entries(empty)) byName[name].placeholder = String(value);
}

function complain(problem) {
  for (const field of FIELDS) {
    const name = field.dataset.field, mine = problem && problem.field === name;
    field.toggleAttribute("aria-invalid", mine);
    if (mine) field.setAttribute("aria-invalid", "true");
    root.querySelector(`[data-error="${name}"]`).textContent = mine ? problem.message : "";
    if (mine && field.closest("details")) field.closest("details").open = true;
  }
  at("answer").classList.toggle("c-stale", Boolean(problem));
  at("answer").setAttribute("aria-busy", String(Boolean(problem)));
}

function show() {
  try {
    const { request } = read();
    const { typical, ...asked } = request;
    const a = predict(asked);
    complain(null);
    const badge = at("verdict");
    badge.textContent = VERDICTS[a.verdict];
    badge.dataset.verdict = a.verdict;
    const free = a.settings.device.total_bytes - a.device_peak.value;
    at("reason").textContent = a.verdict === "fits"
      ? `It starts, serves ${count(a.full_length_requests.value, 1)} requests of ${count(a.settings.max_model_len)} tokens ` +
        `at once (90 %: ${span(a.full_length_requests, (x) => count(x, 1))}) and leaves ${two(free)} GiB of the device.`
      : `${a.reason[0].toUpperCase()}${a.reason.slice(1)}.`;
    showBar(a);
    showTerms(a);
    showFigures(a, typical);
    showSettings(a);
    const { text, note } = command(asked);
    at("command").textContent = text;
    at("command-note").textContent = note;
    at("of").textContent = `${DATA.models[asked.model].title} on ${asked.tensor_parallel_size > 1
      ? `${asked.tensor_parallel_size} × ` : ""}${a.settings.device.name === "unknown"
      ? `a GPU of ${two(a.settings.device.total_bytes)} GiB` : a.settings.device.title}` +
      (asked.tensor_parallel_size > 1 ? "; sizes are those of one GPU" : "");
  } catch (problem) {
    if (!(problem instanceof RequestError)) throw problem;
    complain(problem);
    at("verdict").textContent = "No answer";
    at("verdict").dataset.verdict = "none";
    at("reason").textContent = problem.message;
  }
}

// The address.

function write() {
  let given = {};
  try { ({ given } = read()); } catch { return; }
  const query = new URLSearchParams(given).toString();
  try { history.replaceState(history.state, "", PREFIX + query); } catch { location.hash = PREFIX + query; }
}

function restore() {
  if (!location.hash.startsWith(PREFIX)) return false;
  const given = new URLSearchParams(location.hash.slice(PREFIX.length));
  const unknown = [...given.keys()].filter((name) => !byName[name]);
  for (const field of FIELDS) {
    const text = given.get(field.dataset.field);
    if (field.type === "checkbox") field.checked = text === "1";
    else if (field.tagName === "SELECT" && text != null && ![...field.options].some((one) => one.value === text))
      unknown.push(`${field.dataset.field}=${text}`);
    else field.value = text ?? field.dataset.standard ?? "";
    if (text != null && field.closest("details")) field.closest("details").open = true;
  }
  at("link-note").textContent = unknown.length ? `The link holds what this page does not know: ${unknown.join(", ")}.` : "";
  return true;
}

async function copy() {
  const text = at("command").textContent;
  let done = true;
  try { await navigator.clipboard.writeText(text); } catch { // not allowed from disk in every browser
    const range = document.createRange();
    range.selectNodeContents(at("command"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    done = document.execCommand("copy");
  }
  at("copied").textContent = done ? "copied" : "select and copy it by hand";
  setTimeout(() => { at("copied").textContent = ""; }, 2000);
}

const form = root.querySelector("form");
form.addEventListener("submit", (event) => event.preventDefault());
for (const kind of ["input", "change"])
  form.addEventListener(kind, () => { at("link-note").textContent = ""; show(); write(); });
at("copy").addEventListener("click", copy);
at("reset").addEventListener("click", () => {
  for (const field of FIELDS)
    if (field.type === "checkbox") field.checked = false;
    else field.value = field.dataset.standard ?? "";
  show();
  write();
});
addEventListener("hashchange", () => restore() && show());
if (restore()) root.scrollIntoView({ behavior: "instant" });
show();
root.calculator = { predict, command };
