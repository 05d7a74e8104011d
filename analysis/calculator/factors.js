// Fitted terms: which calibration answers, and what it says (analysis/calibration.py, analysis/fit/drivers.py).

const sampled = (f) => Math.min(f.max_num_seqs, f.max_num_batched_tokens);
const mlpBytes = (f) => f.max_num_batched_tokens * f.intermediate_size / f.tensor_parallel_size * f.dtype_bytes;
const DRIVERS = {
  one: () => 1,
  layers: (f) => f.layers,
  odd_vocabulary: (f) => f.vocab_size % 2,
  logit_bytes: (f) => sampled(f) * f.vocab_size * f.dtype_bytes,
  logits: (f) => sampled(f) * f.vocab_size,
  hidden_bytes: (f) => f.max_num_batched_tokens * f.hidden_size * f.dtype_bytes,
  pipeline_bytes: () => 0,
  mlp_bytes: mlpBytes,
  expert_bytes: (f) => (f.experts ? mlpBytes(f) : 0),
  step_tokens: (f) => f.max_num_batched_tokens,
  seqs: (f) => f.max_num_seqs,
  graphs: (f) => f.graph_count,
  graph_layers: (f) => f.graph_count * f.layers,
  graph_expert_layers: (f) => (f.experts ? f.graph_count * f.layers : 0),
  graph_hidden_bytes: (f) => f.graph_max_size * f.hidden_size * f.dtype_bytes,
  graph_logits: (f) => f.graph_max_size * f.vocab_size,
  captured: (f) => (f.graph_count ? 1 : 0),
  ranks: (f) => f.tensor_parallel_size - 1,
};

const groupValue = (group, features) => Math.max(
  ...group.branches.map((branch) => sum(Object.entries(branch).map(([name, k]) => k * DRIVERS[name](features)))),
);

// The features inside the fitted ranges; `features` itself where it lies inside.
function clamped(group, features) {
  const outside = {};
  for (const [name, [low, high]] of Object.entries(group.ranges)) {
    const value = Number(features[name]);
    if (!(low <= value && value <= high)) outside[name] = Math.trunc(Math.min(Math.max(value, low), high));
  }
  return Object.keys(outside).length ? { ...features, ...outside } : features;
}

function evaluate({ one, apart }, term, features) {
  if (term.startsWith("cuda_graph") && !features.graph_count) return exact(0);
  const groups = (features.experts && one.groups[`${term}/experts`]) || one.groups[term];
  const tp = features.tensor_parallel_size;
  const known = Object.keys(groups).map(Number);
  const size = known.includes(0) ? 0
    : known.sort((a, b) => Math.abs(a - tp) - Math.abs(b - tp) || a - b)[0];
  const group = groups[size];
  let value = groupValue(group, features);
  let below = -group.low - group.relative_low * value;
  let above = group.high + group.relative_high * value;
  let basis = "calibrated";
  const inside = clamped(group, features);
  if (inside !== features || (size !== 0 && size !== tp)) {
    basis = "extrapolated";
    let beyond = Math.abs(value - groupValue(group, inside));
    if (size !== 0 && size !== tp) {
      const others = Object.values(groups).map((other) => groupValue(other, features));
      beyond += Math.max(...others) - Math.min(...others);
    }
    const extra = Math.max(DATA.widening.extrapolated * beyond, DATA.widening.least * Math.abs(value));
    below += extra;
    above += extra;
  }
  if (apart) {
    basis = "extrapolated";
    const extra = DATA.widening.borrowed * apart * Math.abs(value);
    below = below * (1 + apart) + extra;
    above = above * (1 + apart) + extra;
  }
  if (one.kind === "prior") basis = "extrapolated";
  value = Math.max(value, 0);
  return {
    value, low: Math.min(Math.max(value - Math.max(below, 0), 0), value), high: value + Math.max(above, 0), basis,
  };
}

const RANK = { own: 0, public: 1, prior: 2 };

function minorOfText(version) {
  const parts = version.split("+")[0].split(".").slice(0, 2).map((part) => (/^\d+$/.test(part) ? Number(part) : NaN));
  return parts.length === 2 && !parts.some(Number.isNaN) ? parts[0] * 100 + parts[1] : 0;
}

function distance(one, term, s) {
  const theirs = minorOfText(one.vllm_version), ours = minorOfText(s.version_text);
  let apart = Math.min(0.05 * Math.abs(theirs - ours), 0.9);
  if (one.gpu !== s.device.name && one.gpu !== "any") apart += 0.25;
  const decides = ["activation", "cuda_graph_estimate", "runtime"].includes(term);
  if (one.runner !== "any" && one.runner !== s.runner && decides) apart += 1;
  if ((DATA.term_changes[term] ?? []).some((change) => (theirs < change) !== (ours < change))) apart += 1;
  if (one.tensor_parallel_sizes.length && !one.tensor_parallel_sizes.includes(s.tensor_parallel_size)) apart += 0.25;
  return Number(apart.toFixed(6));
}

function notesOf(one, term, s) {
  if (one.kind === "prior") return [`${term}: nothing was measured; the formula of ${one.name} with a wide interval`];
  const found = [];
  if (minorOfText(one.vllm_version) !== minorOfText(s.version_text))
    found.push(`${one.name} was fitted on vLLM ${one.vllm_version}, not ${s.version_text}; intervals are widened`);
  if (one.gpu !== s.device.name && one.gpu !== "any")
    found.push(`${one.name} was fitted on ${one.gpu}, not ${s.device.name}; intervals are widened`);
  if (one.runner !== "any" && one.runner !== s.runner)
    found.push(`${one.name} was fitted on model runner ${one.runner}, not ${s.runner}`);
  if (one.tensor_parallel_sizes.length && !one.tensor_parallel_sizes.includes(s.tensor_parallel_size))
    found.push(`${one.name} saw tensor-parallel sizes ${one.tensor_parallel_sizes.join(", ")}, not ${s.tensor_parallel_size}`);
  if (one.kind === "public") found.push(`${one.name} is fitted to public figures: ${one.source}`);
  return found;
}

// The nearest calibration per term: { term: {one, apart} }, the name of the first, and notes.
function select(s) {
  const chosen = {};
  for (const term of TERMS) {
    const scored = DATA.calibrations.filter((one) => one.groups[term]).map((one) => {
      const apart = distance(one, term, s);
      return { one, apart, far: RANK[one.kind] + (apart >= 1 && one.kind !== "prior" ? 3 : 0) };
    });
    scored.sort((a, b) => a.far - b.far || a.apart - b.apart || (a.one.name < b.one.name ? -1 : 1));
    if (scored.length) chosen[term] = scored[0];
  }
  return {
    chosen, origin: Object.values(chosen)[0].one.name,
    notes: Object.entries(chosen).flatMap(([term, { one }]) => notesOf(one, term, s)),
  };
}
