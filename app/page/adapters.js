// Adapters: a card for each, with its traffic, layers, versions, merge and trial.

import { adapters, ask, json, may } from "./api.js";
import { $, button, el, facts, hash, table, whole } from "./dom.js";
import { grid } from "./grid.js";
import { arm, parse, shadow, traffic } from "./prometheus.js";
import * as upload from "./upload.js";

const REFRESH_MS = 5000;
const PAGE = 30;
const BOXES = { layers, versions }; // what a card opens
let list = [];
let next = null; // where the page behind them begins
let metrics = [];
let timer = 0;
const opened = new Map(); // adapter -> which box of its card is open

export async function show() {
  $("read-only").hidden = may("change");
  $("upload").hidden = !may("change");
  clearInterval(timer);
  if (!may("ask")) {
    $("adapters-cards").replaceChildren();
    return;
  }
  await load();
  if (may("watch")) timer = setInterval(() => !document.hidden && measure().catch((error) => say(error.message)), REFRESH_MS);
}

export function hide() {
  clearInterval(timer);
}

async function load(after = "") {
  try {
    const q = $("adapters-filter").value.trim();
    const { list: page, total, next: behind } = await adapters({ limit: PAGE, q, after });
    list = after ? [...list, ...page] : page;
    next = behind;
    const count = total === null ? `${whole(list.length)}${next ? " or more" : ""}` : whole(total);
    $("adapters-count").textContent = `${count} ${total === 1 ? "adapter" : "adapters"}${q ? " of that name" : ""}`;
    $("adapters-more").hidden = !next;
    $("adapters-cards").replaceChildren(...list.map(card));
    await measure();
  } catch (error) {
    say(error.message);
  }
}

/** Traffic and trials anew, without touching what somebody may be about to press. */
async function measure() {
  if (!may("watch")) return;
  metrics = parse(await (await ask("metrics", { accept: "text/plain" })).text());
  const all = traffic(metrics);
  for (const node of $("adapters-cards").children) {
    const adapter = list.find(({ name }) => name === node.dataset.name);
    const own = all.get(adapter.name) ?? { requests: 0, errors: 0, tokens: 0 };
    node.querySelector(".traffic").textContent =
      `${whole(own.requests)} requests, ${whole(own.errors)} errors, ${whole(own.tokens)} tokens`;
    if (adapter.trial) node.querySelector(".arms").replaceChildren(arms(adapter));
  }
}

function card(adapter) {
  const box = el("div", { class: "box" });
  const badges = [adapter.task, adapter.merged && "merged", adapter.trial && adapter.trial.mode].filter(Boolean)
    .map((text) => [el("span", { class: "badge" }, text), " "]);
  const merge = adapter.merged ? "unmerge" : "merge";
  const boxed = (what) => button(capital(what), () => toggle(node, box, adapter, what), { "aria-expanded": "false", "data-box": what });
  const node = el("article", { class: "card", "aria-label": adapter.name, "data-name": adapter.name },
    el("div", {},
      el("div", { class: "head" }, el("h3", {}, adapter.name), el("span", {}, badges)),
      upload.description(adapter, [
        ["Since", new Date(adapter.created).toLocaleString()],
        ["Traffic", el("span", { class: "traffic" }, may("watch") ? "…" : "told to an unrestricted key")],
      ]),
      adapter.trial ? trial(adapter) : null,
      el("div", { class: "row" },
        Object.keys(BOXES).map(boxed),
        may("change") && button(capital(merge), () => change(adapter, merge)))),
    box);
  if (opened.has(adapter.name)) toggle(node, box, adapter, opened.get(adapter.name));
  return node;
}

async function toggle(node, box, adapter, what) {
  const pressed = node.querySelector(`[data-box="${what}"]`);
  const open = pressed.getAttribute("aria-expanded") === "false";
  for (const other of node.querySelectorAll("[data-box]")) {
    other.setAttribute("aria-expanded", String(open && other === pressed));
  }
  box.replaceChildren();
  node.classList.toggle("wide", open);
  opened[open ? "set" : "delete"](adapter.name, what);
  if (!open) return;
  try {
    const content = await BOXES[what](adapter);
    if (opened.get(adapter.name) === what) box.replaceChildren(content);
  } catch (error) {
    box.replaceChildren(el("p", { class: "bad" }, error.message));
  }
}

async function layers({ name }) {
  return grid((await json(`adapters/${name}/changes`)).changes);
}

async function versions(adapter) {
  const entries = await json(`adapters/${adapter.name}/versions`);
  const share = el("input", {
    type: "number", min: 1, max: 100, value: 10, size: 4, "aria-label": "Percent of the requests for a canary",
  });
  const canary = (version) => change(adapter, "canary", { version, percent: Number(share.value) });
  const actions = ({ version }) => may("change") && el("span", { class: "row" },
    button("Roll back", () => change(adapter, "rollback", { version })), button("Canary", () => canary(version)));
  const rows = entries.reverse().map((entry) => [
    hash(entry.version), new Date(entry.created).toLocaleString(), entry.how + (entry.by ? ` by ${entry.by}` : ""),
    entry.current ? "current" : actions(entry) || "",
  ]);
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Versions of ${adapter.name}` },
    table(["Version", "Since", "How", ""], rows),
    rows.length > 1 && may("change") && el("label", { class: "quiet" }, "A canary gets ", share, " % of the requests"));
}

function trial(adapter) {
  const what = adapter.trial.mode === "canary" ? "Canary:" : "Shadow of";
  return el("div", {},
    el("h4", {}, `${what} ${adapter.trial.percent} % of the requests`),
    el("div", { class: "arms scroll" }, arms(adapter)),
    may("change") && el("div", { class: "row" },
      button("Promote", () => change(adapter, "promote")), button("Abort", () => change(adapter, "abort"))));
}

/** The two versions beside each other, as /metrics counts them. */
function arms({ name, version, trial: { mode, version: other } }) {
  if (mode === "shadow") {
    return facts([["Version", hash(other)], ...Object.entries(shadow(metrics, name)).map(([what, n]) => [what, whole(n)])]);
  }
  const both = ["current", "canary"].map((one) => arm(metrics, name, one));
  const ms = (value) => (value == null ? "–" : `${value.toFixed(1)} ms`);
  return table(["", "current", "canary"], [
    ["Version", hash(version), hash(other)],
    ["Requests", ...both.map((one) => whole(one.requests))],
    ["Errors", ...both.map((one) => whole(one.errors))],
    ["Mean", ...both.map((one) => ms(one.mean))],
    ["p50", ...both.map((one) => ms(one.p50))],
    ["p99", ...both.map((one) => ms(one.p99))],
  ]);
}

const capital = (word) => word[0].toUpperCase() + word.slice(1);
const DONE = {
  merge: "is merged", unmerge: "is no longer merged", rollback: "is rolled back", canary: "has a canary",
  promote: "has its trial's version now", abort: "goes on without a trial",
};

async function change(adapter, what, body) {
  try {
    await ask(`adapters/${adapter.name}/${what}`, { method: "POST", body });
    say(`${adapter.name} ${DONE[what]}.`);
  } catch (error) {
    say(error.message);
  }
  await load();
}

function say(text) {
  $("adapters-status").textContent = text;
}

export function calls() {
  return [upload.call() ?? { method: "GET", path: "adapters", query: {} }];
}

$("adapters-filter").addEventListener("input", () => load());
$("adapters-more").addEventListener("click", () => load(next));
upload.listen(() => load());
