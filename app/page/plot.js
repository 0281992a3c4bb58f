// Dots on a canvas: drawn at most once a frame, found by mouse and by arrow keys.

import { colour } from "./dom.js";

const RADIUS = 3.5;
const REACH = 14; // pixels around a dot in which the mouse finds it
const EDGE = 24;
const PLAY_MS = 1600;
const WAYS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Plot {
  #canvas; #tip; #heard; #ends = []; #members = new Map(); #texts = []; #t = 0; #frame = 0; #playing = 0;
  #at = -1; #lit = -1; #x = new Float32Array(0); #y = new Float32Array(0);

  /** heard: picked(i) for a click or Enter, over(i) for the dot that keys have come to. */
  constructor(canvas, tip, heard) {
    this.#canvas = canvas;
    this.#tip = tip;
    this.#heard = heard;
    canvas.addEventListener("pointermove", (event) => this.#point(this.#near(event)));
    canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
    canvas.addEventListener("click", (event) => this.pick(this.#near(event)));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** ends: [{x, y}] of one or two; groups: a number for each dot, or nothing. */
  set(ends, groups, texts) {
    [this.#ends, this.#texts, this.#t, this.#at, this.#lit] = [ends, texts, 0, -1, -1];
    this.#members = Map.groupBy(texts.keys(), (i) => groups?.[i] ?? 0);
    this.draw();
  }

  colour = (group) => colour(group);

  /** How far on the way from the first end to the second: 0 to 1. */
  slide(t) {
    cancelAnimationFrame(this.#playing);
    this.#t = t;
    this.#tip.hidden = true;
    this.draw();
  }

  /** All the way, frame by frame; at once where less motion is wanted. */
  play(told) {
    const from = this.#t >= 1 ? 0 : this.#t, to = 1;
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.slide(to);
      return told(to);
    }
    let began = null;
    const step = (now) => {
      began ??= now;
      const t = Math.min(to, from + (now - began) / PLAY_MS);
      this.slide(t);
      told(t);
      if (t < to) this.#playing = requestAnimationFrame(step);
    };
    this.#playing = requestAnimationFrame(step);
  }

  stop() {
    cancelAnimationFrame(this.#playing);
  }

  /** Show one group's dots before the others, or all again. Returns whether it is shown now. */
  highlight(group) {
    this.#lit = this.#lit === group ? -1 : group;
    this.draw();
    return this.#lit >= 0;
  }

  pick(i) {
    if (i < 0) return;
    this.#at = i;
    this.#heard.over(i);
    this.#heard.picked(i);
    this.draw();
  }

  draw() {
    if (!this.#frame && this.#ends.length) this.#frame = requestAnimationFrame(() => this.#paint());
  }

  #paint() {
    this.#frame = 0;
    const canvas = this.#canvas, ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const draw = canvas.getContext("2d");
    draw.setTransform(ratio, 0, 0, ratio, 0, 0);
    draw.clearRect(0, 0, width, height);
    this.#place(width, height);
    for (const [group, members] of this.#members) {
      draw.globalAlpha = this.#lit < 0 || this.#lit === group ? 0.8 : 0.12;
      draw.fillStyle = this.colour(group);
      draw.beginPath();
      for (const i of members) {
        draw.moveTo(this.#x[i] + RADIUS, this.#y[i]);
        draw.arc(this.#x[i], this.#y[i], RADIUS, 0, 7);
      }
      draw.fill();
    }
    this.#ring(draw);
  }

  #ring(draw) {
    if (this.#at < 0) return;
    draw.globalAlpha = 1;
    draw.lineWidth = 2;
    draw.strokeStyle = getComputedStyle(this.#canvas).color;
    draw.beginPath();
    draw.arc(this.#x[this.#at], this.#y[this.#at], RADIUS + 4, 0, 7);
    draw.stroke();
  }

  /** Between the two ends; one scale for both axes, so that distances are true. */
  #place(width, height) {
    const first = this.#ends[0], last = this.#ends.at(-1), t = this.#t, count = first.x.length;
    if (this.#x.length !== count) [this.#x, this.#y] = [new Float32Array(count), new Float32Array(count)];
    let far = 1e-9;
    for (let i = 0; i < count; i++) {
      this.#x[i] = first.x[i] + t * (last.x[i] - first.x[i]);
      this.#y[i] = first.y[i] + t * (last.y[i] - first.y[i]);
      far = Math.max(far, Math.abs(this.#x[i]) / (width / 2 - EDGE), Math.abs(this.#y[i]) / (height / 2 - EDGE));
    }
    for (let i = 0; i < count; i++) {
      this.#x[i] = width / 2 + this.#x[i] / far;
      this.#y[i] = height / 2 + this.#y[i] / far;
    }
  }

  #near({ offsetX, offsetY }) {
    let best = -1, least = REACH ** 2;
    for (let i = 0; i < this.#x.length; i++) {
      const distance = (this.#x[i] - offsetX) ** 2 + (this.#y[i] - offsetY) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  #point(i) {
    this.#tip.hidden = i < 0;
    if (i < 0) return;
    this.#tip.textContent = this.#texts[i].slice(0, 300);
    const right = this.#x[i] > this.#canvas.clientWidth / 2;
    this.#tip.style.left = right ? "auto" : `${this.#x[i] + 10}px`;
    this.#tip.style.right = right ? `${this.#canvas.clientWidth - this.#x[i] + 10}px` : "auto";
    this.#tip.style.top = `${this.#y[i] + 10}px`;
  }

  #key(event) {
    if (!this.#x.length) return;
    if (event.key === "Enter") return this.pick(this.#at);
    const way = WAYS[event.key];
    if (!way) return;
    event.preventDefault();
    this.#at = this.#at < 0 ? 0 : this.#next(way);
    this.#point(this.#at);
    this.#heard.over(this.#at);
    this.draw();
  }

  /** The nearest dot on that side: what lies across the way counts double. */
  #next([right, down]) {
    let best = this.#at, least = Infinity;
    for (let i = 0; i < this.#x.length; i++) {
      const x = this.#x[i] - this.#x[this.#at], y = this.#y[i] - this.#y[this.#at];
      const ahead = x * right + y * down, across = Math.abs(x * down) + Math.abs(y * right);
      if (i !== this.#at && ahead > 0 && ahead + 2 * across < least) [best, least] = [i, ahead + 2 * across];
    }
    return best;
  }
}
