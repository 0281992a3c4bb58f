// Live: what the server does now, asked every second while it is looked at.

import { json, may } from "./api.js";
import { $, Colours, el, svg, whole } from "./dom.js";

const EVERY_MS = 1000;
const RATE_S = 5; // seconds that the rate is a mean of
const colours = new Colours();
let timer = 0;

export function show() {
  clearInterval(timer);
  $("live-shown").hidden = !may("watch");
  if (!may("watch")) return say("Enter a key that may use every adapter, above, to see this.");
  look();
  timer = setInterval(() => !document.hidden && look(), EVERY_MS);
}

export function hide() {
  clearInterval(timer);
}

async function look() {
  try {
    paint(await json("live"));
    say("");
  } catch (error) {
    say(error.message);
  }
}

function paint({ tokens_per_s: seconds, queue, latency, batches, batch_limit_tokens: limit }) {
  const last = seconds.slice(-RATE_S);
  $("live-rate").textContent = whole(last.reduce((a, b) => a + b, 0) / last.length);
  $("live-queue").textContent = whole(queue.tokens);
  $("live-limit").textContent = whole(queue.limit_tokens);
  $("live-meter").value = queue.tokens / queue.limit_tokens;
  $("live-p50").textContent = latency.p50_ms?.toFixed(1) ?? "–";
  $("live-p99").textContent = latency.p99_ms?.toFixed(1) ?? "–";
  $("live-requests").textContent = whole(latency.requests);
  const most = Math.max(1, ...seconds);
  $("live-seconds").replaceChildren(...seconds.map((tokens, i) => {
    const height = (76 * tokens) / most;
    const title = svg("title", {}, `${whole(tokens)} tokens`);
    return svg("rect", { class: "bar", x: 10 * i + 1, y: 80 - height, width: 8, height }, title);
  }));
  const highest = Math.max(...batches.map(tokensOf), limit / 8);
  $("live-batches").replaceChildren(...batches.flatMap((batch, i) => stack(batch, 10 * (64 - batches.length + i) + 1, highest)));
  const names = [...new Set(batches.flatMap(({ adapters }) => Object.keys(adapters)))];
  for (const name of names) colours.of(name);
  $("live-legend").replaceChildren(...names.sort().slice(0, 40).map((name) => el("span", {}, colours.swatch(name), name)));
  if (document.activeElement?.closest("#live details") == null) rows(batches);
}

const tokensOf = ({ adapters }) => Object.values(adapters).reduce((a, b) => a + b, 0);

/** One batch as a bar of its adapters' tokens, one above the other. */
function stack(batch, x, highest) {
  let y = 160;
  return Object.entries(batch.adapters).map(([name, tokens]) => {
    const height = (156 * tokens) / highest;
    y -= height;
    const title = svg("title", {}, `${name}: ${whole(tokens)} tokens, batch of ${batch.ms.toFixed(1)} ms`);
    const part = svg("rect", { x, y, width: 8, height }, title);
    part.style.fill = colours.of(name);
    return part;
  });
}

function rows(batches) {
  $("live-rows").replaceChildren(...batches.toReversed().map((batch) => el("tr", {},
    el("td", {}, String(batch.id)),
    el("td", {}, new Date(1000 * batch.ended).toLocaleTimeString()),
    el("td", {}, batch.ms.toFixed(1)),
    el("td", {}, whole(tokensOf(batch))),
    el("td", {}, Object.entries(batch.adapters).map(([name, tokens]) => `${name} ${whole(tokens)}`).join(", ")))));
}

function say(text) {
  $("live-status").textContent = text;
  $("live-status").hidden = !text;
}

export function calls() {
  return [{ method: "GET", path: "live", query: {} }];
}
