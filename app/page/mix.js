// A weighted sum of the picked adapters, by sliders: how it is spelled, what it is, and keeping it.

import { json, may } from "./api.js";
import { $, button, el } from "./dom.js";

const weights = new Map(); // name -> weight; names stay when they are picked off, for when they come back
const EVEN = 0.5;
let onChange = () => {};
let onKept = () => {};
let keep = null; // made once, so that what it says stays when the picks are offered anew
let shown = [];

const weight = (name) => weights.get(name) ?? EVEN;
const on = () => $("mix-on").checked && shown.length > 0;

/** What the picked adapters sum up to, as an adapter object; null while nothing is mixed. */
export function mixed() {
  if (!on()) return null;
  const head = shown.find((adapter) => adapter.has_head) ?? shown[0];
  const spelled = shown.map(({ name }) => `${name}:${weight(name)}`).join("+");
  return { ...head, name: "weighted sum", spelled };
}

/** Sliders for these adapters. */
export function offerMix(adapters, changed, kept = onKept) {
  onChange = changed;
  onKept = kept;
  shown = adapters;
  $("mix").hidden = !adapters.length;
  $("mix-sliders").replaceChildren(...(on() ? adapters.map(slider) : []));
  $("mix-keep").replaceChildren(...(on() && may("change") ? (keep ??= keeping()) : []));
}

function slider({ name }) {
  const told = el("output", {}, weight(name).toFixed(2));
  const range = el("input", { type: "range", min: -1, max: 2, step: 0.05, value: weight(name), "aria-label": `Weight of ${name}`,
    oninput: () => {
      weights.set(name, Number(range.value));
      told.textContent = weight(name).toFixed(2);
      onChange();
    } });
  return el("label", { class: "row" }, el("span", { class: "name" }, name), range, told);
}

function keeping() {
  const name = el("input", { placeholder: "name", "aria-label": "Name to keep the sum under", pattern: "[a-z0-9][a-z0-9._\\-]{0,62}", required: true });
  const said = el("span", { role: "status" });
  return [name, button("Keep", async () => {
    if (!name.reportValidity()) return;
    said.textContent = "…";
    try {
      const body = { adapters: shown.map((a) => a.name), weights: shown.map((a) => weight(a.name)) };
      const made = await json(`adapters/${encodeURIComponent(name.value)}/compose`, { method: "POST", body, more: { "If-None-Match": "*" } });
      onKept();
      said.textContent = `${made.name} is served, version ${made.version.slice(0, 12)}.`;
    } catch (error) {
      said.textContent = error.status === 412 ? `${name.value} is served already: take another name.` : error.message;
    }
  }), said];
}

$("mix-on").addEventListener("change", () => {
  offerMix(shown, onChange);
  onChange();
});
