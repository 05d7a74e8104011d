// One start: KV cache, budget, intervals and verdict (analysis/predict/answer.py, analysis/arithmetic/kv_groups.py).

function blocksPerRequest(plan, length, inFlight) {
  return sum(plan.groups.map(([window, tokens, count]) => count * (
    window == null ? ceilDiv(length, tokens) : ceilDiv(Math.min(window - 1 + inFlight, length), tokens) + 1
  )));
}

// Layers of one rank with their page sizes in elements, scaled by the element and the block.
function planOf(layout, elementBytes, blockTokens) {
  return {
    bytes_per_token: layout.elements_per_token * elementBytes,
    bytes_per_block: layout.elements_per_block_token * elementBytes * blockTokens,
    groups: layout.groups.map(([window, stretch, count]) => [window, stretch * blockTokens, count]),
    group_count: sum(layout.groups.map(([, , count]) => count)),
  };
}

// One start.

function predict(request) {
  const model = DATA.models[request.model];
  const form = model.forms[request.quantization ?? ""];
  if (typeof form === "string") throw new RequestError("quantization", form);
  const s = resolve(request, model, form);
  const tp = String(s.tensor_parallel_size);
  const byVersion = form.weights_before_0_30 && !atLeast(s.version, 0, 30) ? form.weights_before_0_30 : form.weights;
  const weights = byVersion[tp], layout = model.kv[tp];
  for (const refused of [weights, layout])
    if (typeof refused === "string")
      throw new RequestError("tensor_parallel_size", refused);
  const elementBytes = s.kv_cache_dtype === "auto" ? form.kv_element_bytes : DATA.kv_dtypes[s.kv_cache_dtype];
  const plan = planOf(layout, elementBytes, s.block_size);
  const features = {
    ...model.shape, dtype_bytes: form.dtype_bytes, tensor_parallel_size: s.tensor_parallel_size,
    pipeline_parallel_size: 1, max_num_seqs: s.max_num_seqs, max_num_batched_tokens: s.max_num_batched_tokens,
    max_model_len: s.max_model_len, enforce_eager: s.enforce_eager, graph_count: s.graph_count,
    graph_max_size: s.cudagraph_largest,
  };
  const selection = select(s);
  const t = Object.fromEntries(TERMS.map((term) => [term, evaluate(selection.chosen[term], term, features)]));
  return answer({ request, model, form, s, weights, plan, t, selection });
}

function answer({ request, model, form, s, weights, plan, t, selection }) {
  const totalBytes = s.device.total_bytes;
  const budget = Math.ceil(totalBytes * s.gpu_memory_utilization);
  const reserved = s.estimate_in_budget ? t.cuda_graph_estimate : exact(0);
  const profiled = [t.activation, t.non_torch, reserved, ...(s.context_in_budget ? [t.context] : [])];
  const pool = request.kv_cache_memory_bytes != null
    ? exact(request.kv_cache_memory_bytes) : total([], profiled, budget - weights);
  const fixed = pool.basis === "exact";
  const outside = [t.cuda_graph, t.runtime, ...(!s.context_in_budget || fixed ? [t.context] : [])];
  const peak = fixed || pool.value <= 0
    ? total([...outside, t.activation, t.non_torch], [], weights + Math.max(pool.value, 0))
    : total(outside, [reserved], budget);
  const perRequest = blocksPerRequest(plan, s.max_model_len, s.in_flight_tokens);

  const blocks = (bytes) => Math.floor(Math.max(Math.trunc(bytes), 0) / plan.bytes_per_block);
  const requests = (bytes) => (perRequest ? blocks(bytes) / perRequest : 0);
  const tokens = (bytes) => (s.capacity_is_derived ? Math.trunc(requests(bytes) * s.max_model_len)
    : Math.floor(blocks(bytes) / Math.max(plan.group_count, 1)) * s.block_size);
  const each = (of) => ({ value: of(pool.value), low: of(pool.low), high: of(pool.high), basis: pool.basis });
  const longest = (held) => {
    let low = 0, high = s.max_model_len;
    while (low < high) {
      const middle = Math.floor((low + high + 1) / 2);
      if (blocksPerRequest(plan, middle, s.in_flight_tokens) <= held) low = middle;
      else high = middle - 1;
    }
    return low;
  };

  const refused = () => {
    const config = (sentence) => ({ phase: "config", shortfall_bytes: 0, sentence });
    if (s.max_model_len > s.length_limit)
      return config(`max_model_len is ${s.max_model_len}, and config.json allows ${s.length_limit}; ` +
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 overrides that");
    if (s.max_num_batched_tokens < s.max_num_seqs)
      return config(`max_num_batched_tokens (${s.max_num_batched_tokens}) is less than max_num_seqs (${s.max_num_seqs})`);
    return null;
  };
  const kvObstacle = (poolBytes) => {
    const block = plan.bytes_per_block;
    if (poolBytes < block)
      return { phase: "kv_allocation", shortfall_bytes: block - poolBytes,
        sentence: `nothing is left for the KV cache: ${gib(poolBytes)} of the budget of ${gib(budget)}` };
    const usable = poolBytes - (s.null_block_reserved ? block : 0);
    const need = perRequest * block;
    if (need > usable && !s.auto_length)
      return { phase: "kv_allocation", shortfall_bytes: need - usable,
        sentence: `one request of ${s.max_model_len} tokens needs ${gib(need)} of KV cache and ${gib(usable)} are left; ` +
          `about ${longest(Math.trunc(Math.floor(Math.max(usable, 0) / block)))} tokens would fit` };
    return null;
  };
  // What keeps the engine from starting, taking this end of every term; null if nothing does.
  const obstacle = (end, poolBytes, peakBytes) => {
    const context = t.context[end], nonTorch = t.non_torch[end], free = totalBytes - context;
    if (free < budget)
      return { phase: "init_device", shortfall_bytes: budget - free,
        sentence: `the start check fails: ${gib(free)} are free, less than gpu_memory_utilization ` +
          `${general(s.gpu_memory_utilization)} x ${gib(totalBytes)} = ${gib(budget)}` };
    if (weights > free)
      return { phase: "load", shortfall_bytes: weights - free,
        sentence: `weights of ${gib(weights)} do not fit into ${gib(free)}` };
    const profiling = weights + nonTorch + t.activation[end];
    if (profiling > free)
      return { phase: "profile", shortfall_bytes: profiling - free,
        sentence: `weights, memory outside torch and the profiling run need ${gib(profiling)} of ${gib(free)}` };
    const found = kvObstacle(poolBytes);
    if (found) return found;
    const need = weights + nonTorch + poolBytes;
    if (fixed && need > free)
      return { phase: "kv_allocation", shortfall_bytes: need - free,
        sentence: `weights and a KV pool of ${gib(poolBytes)} need ${gib(need)} of ${gib(free)}; ` +
          "vLLM does not check a pool given in bytes" };
    if (peakBytes > totalBytes)
      return { phase: "graph_capture", shortfall_bytes: peakBytes - totalBytes,
        sentence: `CUDA graphs and the sampler's warm-up would take the device to ${gib(peakBytes)} of ${gib(totalBytes)}` };
    return null;
  };
  const verdict = () => {
    const no = refused();
    if (no) return ["does_not_start", no, `at ${no.phase}, ${no.sentence}`];
    const expected = obstacle("value", pool.value, peak.value);
    const worse = obstacle("high", pool.low, peak.high);
    const better = obstacle("low", pool.high, peak.low);
    if (expected && better)
      return ["does_not_start", expected, `at ${expected.phase}, ${gib(expected.shortfall_bytes)} short: ${expected.sentence}`];
    if (expected) return ["tight", expected, `may fail at ${expected.phase}, within the error: ${expected.sentence}`];
    if (worse) return ["tight", null, `may fail at ${worse.phase} at the end of the interval: ${worse.sentence}`];
    const atOnce = requests(pool.value);
    if (atOnce < ENOUGH_REQUESTS && !s.auto_length)
      return ["tight", null, `only ${fixed2(atOnce)} requests of ${s.max_model_len} tokens fit at once`];
    return ["fits", null, "starts"];
  };

  const warnings = [...form.notes, ...s.notes, ...selection.notes];
  if (s.auto_length) {
    const usable = blocks(pool.value) - (s.null_block_reserved ? 1 : 0);
    const fit = perRequest > usable ? longest(Math.max(usable, 0)) : 0;
    if (fit) warnings.push(`max_model_len auto becomes ${fit}: ${s.max_model_len} tokens do not fit`);
  }
  const [word, hindrance, reason] = verdict();
  return {
    model, settings: s, plan, weights_bytes: weights, kv_bytes_per_token: plan.bytes_per_token,
    activation: t.activation, non_torch: t.non_torch, cuda_graph: t.cuda_graph, cuda_graph_estimate: reserved,
    context: t.context, runtime: t.runtime, budget_bytes: budget, fixed_pool: fixed, kv_pool: pool,
    kv_cache_blocks: blocks(pool.value), kv_cache_tokens: each(tokens), full_length_requests: each(requests),
    device_peak: peak, verdict: word, phase: hindrance ? hindrance.phase : null,
    shortfall_bytes: hindrance ? hindrance.shortfall_bytes : 0, reason,
    basis: worst([t.activation, t.non_torch, reserved, t.cuda_graph]), origin: selection.origin,
    warnings: grouped(warnings), blocks_per_request: (length) => blocksPerRequest(plan, length, s.in_flight_tokens),
  };
}

// Each once; what is said of several terms in the same words is said once of all of them.
function grouped(warnings) {
  const about = new Map();
  for (const warning of warnings) {
    const place = warning.indexOf(": ");
    const head = warning.slice(0, Math.max(place, 0)), term = place >= 0 && TERMS.includes(head);
    const key = term ? warning.slice(place + 2) : warning;
    if (!about.has(key)) about.set(key, []);
    if (term && !about.get(key).includes(head)) about.get(key).push(head);
  }
  return [...about].map(([text, heads]) => (heads.length ? `${heads.join(", ")}: ${text}` : text));
}
