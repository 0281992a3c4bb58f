// Prometheus' text format -> the numbers that the page shows of it.

/** [{name, labels: {…}, value}]. */
export function parse(text) {
  const rows = [];
  for (const line of text.split("\n")) {
    const match = /^([a-z_:A-Z0-9]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    rows.push({ name: match[1], labels, value: match[3] === "+Inf" ? Infinity : Number(match[3]) });
  }
  return rows;
}

/** Each adapter's {requests, errors, tokens}. */
export function traffic(rows) {
  const all = new Map();
  const of = (name) => all.get(name) ?? all.set(name, { requests: 0, errors: 0, tokens: 0 }).get(name);
  for (const { name, labels, value } of rows) {
    if (name === "bert_lora_tokens_total") of(labels.adapter).tokens += value;
    if (name !== "bert_lora_requests_total") continue;
    of(labels.adapter).requests += value;
    if (Number(labels.status) >= 400) of(labels.adapter).errors += value;
  }
  return all;
}

/** A trial's arm: {requests, errors, mean, p50, p99}, in milliseconds; percentiles lie within their buckets. */
export function arm(rows, adapter, name) {
  const own = rows.filter(({ labels }) => labels.adapter === adapter && labels.arm === name);
  const sum = (metric, wanted = () => true) => own.filter((row) => row.name === metric && wanted(row.labels))
    .reduce((total, row) => total + row.value, 0);
  const buckets = own.filter((row) => row.name === "bert_lora_trial_seconds_bucket")
    .map((row) => [row.labels.le === "+Inf" ? Infinity : Number(row.labels.le), row.value]).sort((a, b) => a[0] - b[0]);
  const count = sum("bert_lora_trial_seconds_count");
  return {
    requests: sum("bert_lora_trial_requests_total"),
    errors: sum("bert_lora_trial_requests_total", ({ status }) => Number(status) >= 400),
    mean: count ? (1000 * sum("bert_lora_trial_seconds_sum")) / count : null,
    p50: quantile(buckets, 0.5), p99: quantile(buckets, 0.99),
  };
}

/** As Prometheus' histogram_quantile: linear within a bucket. */
function quantile(buckets, share) {
  const rank = share * (buckets.at(-1)?.[1] ?? 0);
  if (!rank) return null;
  const at = buckets.findIndex(([, count]) => count >= rank);
  const [low, before] = at > 0 ? buckets[at - 1] : [0, 0];
  const [high, count] = buckets[at];
  return 1000 * (high === Infinity ? low : low + ((high - low) * (rank - before)) / (count - before));
}

/** What a shadow's comparisons came to: {same: 12, …}. */
export function shadow(rows, adapter) {
  return Object.fromEntries(rows.filter((row) => row.name === "bert_lora_shadow_total" && row.labels.adapter === adapter)
    .map((row) => [row.labels.result, row.value]));
}
