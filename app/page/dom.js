// Elements from names and texts. Text is only ever text: no function here reads markup.

export const $ = (id) => document.getElementById(id);

/** el("button", {type: "button", onclick: f}, "Go"): attributes, listeners, children. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export const button = (text, onclick, more = {}) => el("button", { type: "button", onclick, ...more }, text);

/** A table: the columns' heads, and rows of cells, which may be elements; the first is its row's head. */
export function table(heads, rows) {
  return el("table", {},
    el("thead", {}, el("tr", {}, heads.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, rows.map(([head, ...cells]) => el("tr", {},
      el("th", { scope: "row" }, head), cells.map((cell) => el("td", {}, cell))))));
}

/** The same as el() for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

/** Rows of a name, a number and a bar: [{name, number, share}], share from 0 to 1. */
export function bars(rows) {
  return el("ol", { class: "bars" }, rows.map(({ name, number, share }) => {
    const fill = el("div", { class: "fill" });
    fill.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
    return el("li", {}, el("span", { class: "name" }, name), el("span", { class: "number" }, number),
      el("div", { class: "track", "aria-hidden": "true" }, fill));
  }));
}

/** A list of names and values; values may be elements. */
export function facts(rows) {
  return el("dl", { class: "facts" }, rows.filter((row) => row[1] != null && row[1] !== "")
    .map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

/** A digest's first digits, and all of them for who points at it. */
export function hash(digest) {
  return el("span", { class: "hash", title: digest }, digest.slice(0, 12));
}

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
export const whole = (number) => Math.round(number).toLocaleString("en");

export function bytes(size) {
  const unit = Math.min(3, Math.floor(Math.log2(Math.max(1, size)) / 10));
  return `${(size / 1024 ** unit).toFixed(unit ? 1 : 0)} ${["bytes", "KiB", "MiB", "GiB"][unit]}`;
}

/** A colour for the i-th thing; the base (i < 0) is grey. By the golden angle, so any number of them. */
export function colour(i) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  if (i < 0) return dark ? "hsl(220 6% 58%)" : "hsl(220 6% 60%)";
  return `hsl(${(220 + 137.508 * i) % 360} ${dark ? "65% 66%" : "62% 45%"})`;
}

/** Which of these are which colour: the same name always has the same, in the order of first sight. */
export class Colours {
  #order = new Map();

  of(name) {
    if (name === "base") return colour(-1);
    if (!this.#order.has(name)) this.#order.set(name, this.#order.size);
    return colour(this.#order.get(name));
  }

  swatch(name) {
    const mark = el("i", { "aria-hidden": "true" });
    mark.style.background = this.of(name);
    return mark;
  }
}
