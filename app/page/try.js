// Try: one text through the base and the picked adapters, side by side, while it is typed.

import { adapters, ask, cosines, embed, may, served } from "./api.js";
import { $, bars, el, hash, percent } from "./dom.js";
import { mixed, offerMix } from "./mix.js";

const QUIET_MS = 150; // after a key, before the server is asked
const LABELS = 8;
const MOST_LINES = 200;
let known = []; // adapter objects on offer
let picked = null; // names; null: not chosen yet
let running = new AbortController();
let timer = 0;
let lists = new Map(); // embedding space and list -> its vectors

export function show() {
  if (may("ask")) offer().then(update, say);
  else say(new Error("Enter a key, above, to ask this server."));
}

export function hide() {
  running.abort();
  clearTimeout(timer);
}

/** Name an adapter, or a weighted sum of some, as the API does. */
const spelled = (adapter) => adapter.spelled ?? adapter.name;

async function offer() {
  const { list, next } = await adapters({ q: $("try-filter").value.trim() });
  const kept = known.filter((a) => picked?.has(a.name) && !list.some((b) => b.name === a.name));
  known = [...kept, ...list];
  picked ??= new Set(list.slice(0, 2).map((adapter) => adapter.name));
  if (next) $("try-filter").hidden = false;
  $("try-picks").replaceChildren(...known.map((adapter) => el("label", {}, el("input", {
    type: "checkbox", checked: picked.has(adapter.name), onchange: (event) => {
      picked[event.target.checked ? "add" : "delete"](adapter.name);
      offerMix(chosen(), later);
      update();
    },
  }), adapter.name)));
  offerMix(chosen(), later, () => offer().catch(say));
  if (!known.length) $("try-picks").append(el("p", { class: "quiet" }, "No adapter yet: bring one in the tab Adapters."));
}

const BASE = { name: "base", has_head: false };
/** In the order in which they were picked: the first with a head gives a weighted sum its labels. */
const chosen = () => [...picked ?? []].map((name) => known.find((adapter) => adapter.name === name)).filter(Boolean);
const shown = () => [BASE, ...chosen(), mixed()].filter(Boolean);
const lines = () => $("try-list").value.split("\n").map((s) => s.trim()).filter(Boolean).slice(0, MOST_LINES);

/** Ask for what is on the screen; what was asked before is given up. */
async function update() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const text = $("try-text").value;
  const cards = shown().map((adapter) => card(adapter));
  $("try-cards").replaceChildren(...cards.map((c) => c.node));
  if (!text.trim() || !may("ask")) return cards.forEach(clear);
  const told = await Promise.all(cards.map((c) => fill(c, text, signal)));
  if (!signal.aborted) $("try-status").textContent = told.filter(Boolean).join("; ");
}

const old = new Map(); // name -> its card, so that answers stay on the screen until the next ones

function card(adapter) {
  const before = old.get(adapter.name);
  if (before) return Object.assign(before, { adapter });
  const made = { adapter, version: el("span"), body: el("div", { class: "body" }) };
  made.node = el("article", { class: "card", "aria-label": adapter.name },
    el("h3", {}, adapter.name), el("p", { class: "meta quiet" }, made.version), made.body);
  old.set(adapter.name, made);
  return made;
}

function clear({ node, version, body }) {
  version.replaceChildren();
  body.replaceChildren();
  node.removeAttribute("aria-busy");
}

/** One card's answer. Returns what a screen reader is told. */
async function fill({ adapter, node, version, body }, text, signal) {
  node.setAttribute("aria-busy", "true");
  const began = performance.now();
  try {
    const parts = await Promise.all([headOf(adapter, text, signal), nearestOf(adapter, text, signal)]);
    if (signal.aborted) return "";
    const answer = parts.find(Boolean);
    body.replaceChildren(...parts.filter(Boolean).flatMap((part) => part.nodes));
    if (answer) version.replaceChildren(adapter.spelled ?? hash(answer.adapter.split("@")[1] ?? ""), ` · ${timed(began, answer.model)}`);
    else body.replaceChildren(el("p", { class: "quiet" }, "Paste a list of texts to see the nearest ones."));
    node.removeAttribute("aria-busy");
    return answer ? `${adapter.name}: ${answer.best}` : "";
  } catch (error) {
    if (error.name === "AbortError") return "";
    version.replaceChildren();
    body.replaceChildren(el("p", { class: "bad" }, error.message));
    node.removeAttribute("aria-busy");
    return `${adapter.name}: ${error.message}`;
  }
}

const timed = (began, model) => `${Math.round(performance.now() - began)} ms`
  + (model == null ? "" : `, model ${model.toFixed(1)}`);

/** What its head says; null without one. */
async function headOf(adapter, text, signal) {
  if (!adapter.has_head) return null;
  if (isRanker(adapter) && lines().length) return ranked(adapter, text, signal);
  const body = { inputs: text, ...(adapter.task === "classify" && { top_k: LABELS }) };
  const answer = await ask(`classify?adapter=${encodeURIComponent(spelled(adapter))}`, { method: "POST", body, signal });
  const rows = await answer.json();
  if (adapter.task === "tokens") {
    const best = rows.map((row) => `${row.word} ${row.entity_group}`).join(", ") || "no words marked";
    return { ...served(answer), nodes: [marked(text, rows)], best };
  }
  const more = adapter.labels.length - rows.length;
  const nodes = [bars(rows.map((row) => ({ name: row.label, number: scored(adapter, row.score), share: row.score })))];
  if (more > 0) nodes.push(el("p", { class: "quiet" }, `and ${more} more labels`));
  return { ...served(answer), nodes, best: `${rows[0].label} ${scored(adapter, rows[0].score)}` };
}

const isRanker = (adapter) => adapter.task === "classify" && adapter.labels.length === 1 && adapter.scores === "sigmoid";
const scored = (adapter, score) => (adapter.scores === "none" ? score.toFixed(3) : percent(score));

async function ranked(adapter, text, signal) {
  const texts = lines();
  const answer = await ask(`rerank?adapter=${encodeURIComponent(spelled(adapter))}`, {
    method: "POST", body: { query: text, texts }, signal,
  });
  const rows = await answer.json();
  const shownRows = rows.map((row) => ({ name: texts[row.index], number: percent(row.score), share: row.score }));
  return { ...served(answer), nodes: [bars(shownRows)], best: shownRows[0].name };
}

/** The text with its words marked; places are in code points, as the API counts them. */
function marked(text, rows) {
  const points = Array.from(text);
  const nodes = [];
  let at = 0;
  for (const { start, end, entity_group: group, score } of rows) {
    nodes.push(points.slice(at, start).join(""));
    nodes.push(el("mark", { title: percent(score) }, points.slice(start, end).join(""), el("small", {}, group)));
    at = end;
  }
  return el("p", { class: "words" }, nodes, points.slice(at).join(""));
}

/** The list's lines by their cosine with the text, both through this adapter; null without a list. */
async function nearestOf(adapter, text, signal) {
  const texts = lines();
  if (!texts.length || isRanker(adapter)) return null;
  const own = await embed(spelled(adapter), [text], { signal });
  const list = await listVectors(own, texts, signal);
  const scores = cosines(own.vectors, list, own.width);
  const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, LABELS);
  const rows = order.map((i) => ({ name: texts[i], number: scores[i].toFixed(3), share: scores[i] }));
  return { ...own, nodes: [el("h4", {}, "Nearest, by cosine"), bars(rows)], best: `nearest ${rows[0].name}` };
}

/** Of the very version that read the text: a canary may answer each request by another one. */
async function listVectors({ space, adapter }, texts, signal) {
  const name = `${space}\n${texts.join("\n")}`;
  if (!lists.has(name)) {
    if (lists.size > 32) lists.clear();
    const version = adapter.startsWith("base@") ? "base" : adapter;
    lists.set(name, (await embed(version, texts, { signal })).vectors);
  }
  return lists.get(name);
}

function say(error) {
  $("try-cards").replaceChildren(el("p", { class: "bad" }, error.message));
}

export function calls() {
  const text = $("try-text").value;
  return shown().map((adapter) => {
    const query = adapter === BASE ? {} : { adapter: spelled(adapter) };
    if (!adapter.has_head) return { method: "POST", path: "embed", query, body: { inputs: [text, ...lines()] } };
    if (isRanker(adapter)) return { method: "POST", path: "rerank", query, body: { query: text, texts: lines() } };
    return { method: "POST", path: "classify", query, body: { inputs: text } };
  });
}

function later() {
  running.abort(); // an answer to what stood there before would end the wait for the next
  for (const node of $("try-cards").children) node.setAttribute("aria-busy", "true");
  clearTimeout(timer);
  timer = setTimeout(update, QUIET_MS);
}

for (const id of ["try-text", "try-list"]) $(id).addEventListener("input", later);
$("try-filter").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => offer().catch(say), QUIET_MS);
});
document.addEventListener("try-adapter", (event) => {
  picked = new Set([event.detail]);
  known = [];
});
