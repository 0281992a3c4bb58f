// Adapters: a card for each, with its traffic, layers, versions, merge and trial.

import { adapters, ask, json, may } from "./api.js";
import { $, el, facts, hash, whole } from "./dom.js";
import { grid } from "./grid.js";
import { arm, parse, shadow, traffic } from "./prometheus.js";
import * as upload from "./upload.js";

const REFRESH_MS = 5000;
const PAGE = 30;
const BOXED = ["layers", "versions"];
let list = [];
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
    const { list: page, total } = await adapters({ limit: PAGE, q, after });
    list = after ? [...list, ...page] : page;
    $("adapters-count").textContent = `${whole(total)} ${total === 1 ? "adapter" : "adapters"}${q ? " of that name" : ""}`;
    $("adapters-more").hidden = !page.length || list.length >= total;
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
    node.querySelector(".traffic").textContent = `${whole(own.requests)} requests, ${whole(own.errors)} errors, ${whole(own.tokens)} tokens`;
    if (adapter.trial) node.querySelector(".arms").replaceChildren(arms(adapter));
  }
}

function card(adapter) {
  const box = el("div", { class: "box" });
  const badges = [adapter.task, adapter.merged && "merged", adapter.trial && adapter.trial.mode].filter(Boolean);
  const node = el("article", { class: "card", "aria-label": adapter.name, "data-name": adapter.name },
    el("div", {},
      el("div", { class: "head" }, el("h3", {}, adapter.name), el("span", {}, badges.map((text) => [el("span", { class: "badge" }, text), " "]))),
      upload.description(adapter, [
        ["Since", new Date(adapter.created).toLocaleString()],
        ["Traffic", el("span", { class: "traffic" }, may("watch") ? "…" : "told to an unrestricted key")],
      ]),
      adapter.trial ? trial(adapter) : null,
      el("div", { class: "row" },
        ...BOXED.map((what) => el("button", { type: "button", "aria-expanded": "false", "data-box": what, onclick: () => toggle(node, box, adapter, what) },
          what[0].toUpperCase() + what.slice(1))),
        may("change") && el("button", { type: "button", onclick: () => change(adapter, adapter.merged ? "unmerge" : "merge") }, adapter.merged ? "Unmerge" : "Merge"))),
    box);
  if (opened.has(adapter.name)) toggle(node, box, adapter, opened.get(adapter.name));
  return node;
}

async function toggle(node, box, adapter, what) {
  const button = node.querySelector(`[data-box="${what}"]`);
  const open = button.getAttribute("aria-expanded") === "false";
  for (const other of node.querySelectorAll("[data-box]")) other.setAttribute("aria-expanded", String(open && other === button));
  box.replaceChildren();
  node.classList.toggle("wide", open);
  opened[open ? "set" : "delete"](adapter.name, what);
  if (!open) return;
  try {
    const content = await { layers, versions }[what](adapter);
    if (opened.get(adapter.name) === what) box.replaceChildren(content);
  } catch (error) {
    box.replaceChildren(el("p", { class: "bad" }, error.message));
  }
}

async function layers({ name }) {
  return grid((await json(`adapters/${name}/changes`)).changes);
}

async function versions(adapter) {
  const rows = await json(`adapters/${adapter.name}/versions`);
  const share = el("input", { type: "number", min: 1, max: 100, value: 10, size: 4, "aria-label": "Percent of the requests for a canary" });
  const actions = ({ version, current }) => !current && may("change") && el("span", { class: "row" },
    el("button", { type: "button", onclick: () => change(adapter, "rollback", { version }) }, "Roll back"),
    el("button", { type: "button", onclick: () => change(adapter, "canary", { version, percent: Number(share.value) }) }, "Canary"));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Versions of ${adapter.name}` },
    el("table", {},
      el("thead", {}, el("tr", {}, ["Version", "Since", "How", ""].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, rows.reverse().map((row) => el("tr", {},
        el("td", {}, hash(row.version)),
        el("td", {}, new Date(row.created).toLocaleString()),
        el("td", {}, row.how + (row.by ? ` by ${row.by}` : "")),
        el("td", {}, row.current ? "current" : actions(row)))))),
    rows.length > 1 && may("change") ? el("label", { class: "quiet" }, "A canary gets ", share, " % of the requests") : null);
}

function trial(adapter) {
  const act = (what) => el("button", { type: "button", onclick: () => change(adapter, what) }, what === "promote" ? "Promote" : "Abort");
  return el("div", {},
    el("h4", {}, adapter.trial.mode === "canary" ? `Canary: ${adapter.trial.percent} % of the requests` : `Shadow of ${adapter.trial.percent} % of the requests`),
    el("div", { class: "arms scroll" }, arms(adapter)),
    may("change") ? el("div", { class: "row" }, act("promote"), act("abort")) : null);
}

/** The two versions beside each other, as /metrics counts them. */
function arms(adapter) {
  if (adapter.trial.mode === "shadow") {
    return facts([["Version", hash(adapter.trial.version)], ...Object.entries(shadow(metrics, adapter.name)).map(([what, n]) => [what, whole(n)])]);
  }
  const both = ["current", "canary"].map((name) => arm(metrics, adapter.name, name));
  const ms = (value) => (value == null ? "–" : `${value.toFixed(1)} ms`);
  const rows = [
    ["Version", hash(adapter.version), hash(adapter.trial.version)],
    ["Requests", ...both.map((a) => whole(a.requests))],
    ["Errors", ...both.map((a) => whole(a.errors))],
    ["Mean", ...both.map((a) => ms(a.mean))],
    ["p50", ...both.map((a) => ms(a.p50))],
    ["p99", ...both.map((a) => ms(a.p99))],
  ];
  return el("table", {},
    el("thead", {}, el("tr", {}, ["", "current", "canary"].map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, rows.map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), cells.map((cell) => el("td", {}, cell))))));
}

const DONE = { merge: "is merged", unmerge: "is no longer merged", rollback: "is rolled back", canary: "has a canary", promote: "has its trial's version now", abort: "goes on without a trial" };

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
$("adapters-more").addEventListener("click", () => load(list.at(-1).name));
upload.listen(() => load());
