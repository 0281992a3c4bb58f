// Map: many texts as dots, by the base and by an adapter, and the way from one to the other.

import { about, adapters, cosines, embed, json, may } from "./api.js";
import { guess, read } from "./csv.js";
import { $, el, percent, whole } from "./dom.js";
import { Plot } from "./plot.js";

const MOST_TEXTS = 5000;
const PER_REQUEST = 64; // texts, and
const CHARACTERS = 8000; // that many at most: others want their turn, too
const AT_ONCE = 2; // requests
const NEAREST = 10;
let table = { columns: null, rows: [] };
let drawn = null; // {texts, labels, ends: [vectors], width, adapter}
let running = null;
let worker = null;
const plot = new Plot($("map-canvas"), $("map-tip"), { picked: showNeighbours, over: (i) => tell(i) });

export async function show() {
  plot.draw();
  if (!may("ask")) return say("Enter a key, above, to ask this server.");
  try {
    const { list } = await adapters({ limit: 1000 });
    const before = $("map-adapter").value;
    $("map-adapter").replaceChildren(...list.map(({ name }) => el("option", { value: name }, name)));
    if (list.some(({ name }) => name === before)) $("map-adapter").value = before;
    $("map-adapter").append(el("option", { value: "base" }, "none: the base alone"));
    await suggest();
  } catch (error) {
    say(error.message);
  }
}

export function hide() {
  plot.stop();
}

/** Something to draw for who has nothing at hand: the adapters' own labels, as words. */
async function suggest() {
  if ($("map-text").value || $("map-adapter").value === "base") return;
  const { labels } = await json(`adapters/${$("map-adapter").value}`);
  $("map-text").placeholder = `text,label\n"Where is my card?",${labels[0] ?? "cards"}\n…`;
}

function readTable() {
  table = read($("map-text").value);
  $("map-columns").hidden = table.columns === null;
  if (table.columns) {
    const { text, label } = guess(table.columns, table.rows);
    const options = () => table.columns.map((name, i) => el("option", { value: i }, name));
    $("map-text-column").replaceChildren(...options());
    $("map-label-column").replaceChildren(el("option", { value: -1 }, "none"), ...options());
    $("map-text-column").value = text;
    $("map-label-column").value = label;
  }
  say(table.rows.length ? `${whole(table.rows.length)} ${table.columns ? "rows" : "lines"}` : "");
}

function chosen() {
  const column = table.columns ? Number($("map-text-column").value) : 0;
  const label = table.columns ? Number($("map-label-column").value) : -1;
  const rows = table.rows.filter((row) => row[column].trim()).slice(0, MOST_TEXTS);
  return { texts: rows.map((row) => row[column]), labels: label < 0 ? null : rows.map((row) => row[label]) };
}

async function draw() {
  const { texts, labels } = chosen();
  if (texts.length < 3) return say("Paste at least three texts.");
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const adapter = $("map-adapter").value;
  const names = adapter === "base" ? ["base"] : ["base", adapter];
  busy(true);
  try {
    const count = bar(names.length * texts.length);
    const began = performance.now();
    const fetched = [];
    for (const name of names) fetched.push(await vectorsOf(name, texts, signal, count));
    const seconds = (performance.now() - began) / 1000;
    say(`${whole(names.length * texts.length)} vectors in ${seconds.toFixed(1)} s; finding the plane …`);
    drawn = { texts, labels, adapter, width: fetched[0].width, ends: fetched.map((one) => one.vectors) };
    await place(signal, seconds);
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped." : error.message);
  }
  if (running.signal === signal) busy(false);
}

/** All vectors of one adapter, a few requests at a time. */
async function vectorsOf(name, texts, signal, count) {
  const most = Math.min(PER_REQUEST, about.most ??= (await json("info")).max_client_batch_size);
  let vectors = null, width = 0, begun = 0;
  const next = async () => {
    while (begun < texts.length) {
      const start = begun;
      for (let size = 0; begun < texts.length && begun - start < most && (size += texts[begun].length) <= CHARACTERS; begun++);
      begun = Math.max(begun, start + 1);
      const part = await embed(name, texts.slice(start, begun), { signal, bulk: true });
      width = part.width;
      vectors ??= new Float32Array(texts.length * width);
      vectors.set(part.vectors, start * width);
      count(part.rows);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, next));
  return { vectors, width };
}

/** The plane comes from a worker, and after it how many texts have their like beside them. */
function place(signal, seconds) {
  worker?.terminate();
  worker = new Worker(new URL("pca.js", import.meta.url), { type: "module" });
  const { ends, width, labels, texts } = drawn;
  return new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => { worker.terminate(); reject(signal.reason); });
    worker.onerror = () => reject(new Error("the plane could not be found"));
    worker.onmessage = ({ data }) => {
      if (data.agreement) return sayAgreement(data.agreement);
      shown(data.drawn);
      const shares = data.drawn.explained.map((share) => percent(share, 0)).join(" of the base's variance, ");
      const whose = ends.length > 1 ? "the adapter's" : "the base's variance";
      say(`${whole(texts.length)} texts in ${seconds.toFixed(1)} s. The plane shows ${shares} of ${whose}.`);
      resolve();
    };
    worker.postMessage({ ends, width, labels });
  });
}

function sayAgreement([base, adapter]) {
  $("map-status").append(` The nearest text has the same label: base ${percent(base)}`
    + (adapter === undefined ? "." : `, ${drawn.adapter} ${percent(adapter)}.`));
}

function shown({ points }) {
  $("map-drawn").hidden = false;
  document.querySelector(".slide").hidden = points.length < 2;
  $("map-slider").value = 0;
  $("map-slider-end").textContent = drawn.adapter;
  $("map-near").replaceChildren();
  const groups = drawn.labels ? [...new Set(drawn.labels)].sort() : [];
  plot.set(points, drawn.labels?.map((label) => groups.indexOf(label)), drawn.texts);
  legend(groups);
}

function legend(groups) {
  const marks = groups.slice(0, 24).map((name, i) => {
    const mark = el("i", { "aria-hidden": "true" });
    mark.style.background = plot.colour(i);
    const press = () => {
      const on = plot.highlight(i);
      for (const other of $("map-legend").querySelectorAll("button")) {
        other.setAttribute("aria-pressed", String(on && other === pressed));
      }
    };
    const pressed = el("button", { type: "button", "aria-pressed": "false", onclick: press }, mark, name);
    return pressed;
  });
  const more = groups.length > 24 ? el("span", {}, `and ${groups.length - 24} more labels`) : null;
  $("map-legend").replaceChildren(...marks, ...(more ? [more] : []));
}

function tell(i) {
  $("map-at").textContent = i < 0 ? "" : described(i);
}

const described = (i) => drawn.texts[i] + (drawn.labels ? ` (${drawn.labels[i]})` : "");

/** The nearest texts at both ends, so that the difference can be read. */
function showNeighbours(i) {
  const names = ["base", drawn.adapter];
  $("map-near").replaceChildren(...drawn.ends.map((vectors, end) => {
    const { width } = drawn;
    const scores = cosines(vectors.subarray(i * width, (i + 1) * width), vectors, width);
    scores[i] = -Infinity;
    const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, Math.min(NEAREST, scores.length - 1));
    return el("article", { class: "card", "aria-label": `Nearest by ${names[end]}` },
      el("div", { class: "head" }, el("h3", {}, `Nearest by ${names[end]}`)),
      el("p", { class: "quiet" }, described(i)),
      el("ol", { class: "near" }, order.map((j) => el("li", {}, el("button", { type: "button", onclick: () => plot.pick(j) },
        el("span", {}, scores[j].toFixed(3)), el("span", {}, described(j)))))));
  }));
}

function bar(all) {
  let done = 0;
  return (more) => { $("map-progress").value = (done += more) / all; };
}

function busy(on) {
  $("map-progress").hidden = $("map-stop").hidden = !on;
  if (on) $("map-progress").value = 0;
}

function say(text) {
  $("map-status").textContent = text;
}

export function calls() {
  const { texts } = chosen();
  const adapter = $("map-adapter").value;
  const names = adapter === "base" ? [{}] : [{}, { adapter }];
  const inputs = texts.length ? texts.slice(0, 8) : ["Where is my card?"];
  return names.map((query) => ({ method: "POST", path: "embed", query, body: { inputs }, more: texts.length - inputs.length }));
}

$("map-text").addEventListener("input", readTable);
$("map-file").addEventListener("change", async ({ target }) => {
  if (!target.files[0]) return;
  $("map-text").value = (await target.files[0].text()).slice(0, 8 << 20);
  target.value = "";
  readTable();
});
$("map-draw").addEventListener("click", draw);
$("map-stop").addEventListener("click", () => running?.abort());
$("map-slider").addEventListener("input", ({ target }) => plot.slide(target.value / 100));
$("map-play").addEventListener("click", () => plot.play((t) => { $("map-slider").value = 100 * t; }));
