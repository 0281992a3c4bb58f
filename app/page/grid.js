// The base's modules as a grid, a column for each layer: how much an adapter changes each, and what was refused.

import { el, percent } from "./dom.js";

const NUMBERED = /^(.*?\.)(\d+)\.(.+)$/;

/** changes: {module path: the change's relative size, or null}; refused: {module path: reason}. */
export function grid(changes, refused = {}) {
  const rows = new Map(), single = new Map();
  let layers = 0;
  for (const path of Object.keys(changes)) {
    const match = NUMBERED.exec(path);
    if (!match) single.set(path, path);
    else {
      layers = Math.max(layers, Number(match[2]) + 1);
      if (!rows.has(match[3])) rows.set(match[3], new Map());
      rows.get(match[3]).set(Number(match[2]), path);
    }
  }
  const shade = shades(Object.values(changes).filter((size) => size != null));
  const cell = (path) => el("td", {}, path && square(path, changes[path], shade, refused[path]));
  const numbers = Array.from({ length: layers }, (_, i) => i);
  const heads = ["layer", ...numbers].map((text) => el("th", { scope: "col" }, String(text)));
  const head = (text) => el("th", { scope: "row" }, text);
  return el("div", {},
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Layers and modules" },
      el("table", { class: "grid" },
        el("thead", {}, el("tr", {}, heads)),
        el("tbody", {},
          [...rows].map(([name, paths]) => el("tr", {}, head(name), numbers.map((i) => cell(paths.get(i))))),
          [...single].map(([name, path]) => el("tr", {}, head(name), cell(path)))))),
    el("p", { class: "quiet" }, legend(changes, refused)));
}

/** Pale for the smallest change, full for the largest; by orders of magnitude, since one layer may dwarf the rest. */
function shades(sizes) {
  const [least, most] = [Math.min(...sizes), Math.max(...sizes)].map((size) => Math.log(Math.max(size, 1e-6)));
  return (size) => (most > least ? (Math.log(Math.max(size, 1e-6)) - least) / (most - least) : 1);
}

function square(path, size, shade, reason) {
  const words = reason ? `refused: ${reason}` : size == null ? "untouched" : `${percent(size, 2)} of the weight's size`;
  const box = el("div", { class: reason ? "refused" : size == null ? "" : "changed", title: `${path}: ${words}` },
    el("span", { class: "unseen" }, words));
  if (size != null) box.style.setProperty("--size", shade(size));
  return box;
}

function legend(changes, refused) {
  const sizes = Object.values(changes).filter((size) => size != null);
  const bad = Object.keys(refused).length;
  if (bad) return `Red: ${bad} refused. Grey: the rest.`;
  if (!sizes.length) return "No layer is touched.";
  return `${sizes.length} of ${Object.keys(changes).length} modules changed, by ${percent(Math.min(...sizes))} (pale) to `
    + `${percent(Math.max(...sizes))} (full) of the weight's own size. Grey: untouched.`;
}

/** Of a refusal's problems, the modules that they are about: {path: reason}. The longest path in a tensor's name. */
export function refusedModules(problems, modules) {
  const byLength = [...modules].sort((a, b) => b.length - a.length);
  const refused = {};
  for (const { tensor, reason } of problems) {
    const path = tensor && byLength.find((module) => `.${tensor}.`.includes(`.${module}.`));
    if (path) refused[path] ??= reason;
  }
  return refused;
}
