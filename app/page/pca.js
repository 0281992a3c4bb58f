// A worker: vectors -> a plane. Both ends (base, adapter) are centred and projected onto one plane, the first two
// principal axes of all of them together, so that a slide between the ends is a projection at every point.

const MOST_STEPS = 300;
const STILL = 1e-7; // of a plane's variance, by which a further step changes it

/** ends: Float32Arrays of n rows of `width`. Returns {points: [{x, y}], explained: [share of each end's variance]}. */
export function project(ends, width) {
  const centred = ends.map((vectors) => centre(vectors, width));
  const axes = principal(centred, width);
  const points = centred.map((rows) => ({ x: along(rows, axes[0]), y: along(rows, axes[1]) }));
  const explained = centred.map((rows, i) => (squares(points[i].x) + squares(points[i].y)) / (squares(rows) || 1));
  return { points, explained };
}

/** The share of texts whose nearest other text, by cosine, has the same label. */
export function agreement(vectors, width, labels) {
  const rows = unit(vectors, width), count = labels.length;
  const best = new Float32Array(count).fill(-2), nearest = new Int32Array(count);
  for (let i = 0; i < count; i++) {
    for (let j = i + 1; j < count; j++) {
      let sum = 0;
      for (let k = 0, a = i * width, b = j * width; k < width; k++) sum += rows[a + k] * rows[b + k];
      if (sum > best[i]) { best[i] = sum; nearest[i] = j; }
      if (sum > best[j]) { best[j] = sum; nearest[j] = i; }
    }
  }
  return labels.reduce((same, label, i) => same + (label === labels[nearest[i]]), 0) / count;
}

function centre(vectors, width) {
  const mean = new Float64Array(width), count = vectors.length / width;
  for (let i = 0; i < vectors.length; i++) mean[i % width] += vectors[i] / count;
  return vectors.map((value, i) => value - mean[i % width]);
}

/** Power iteration on two axes at once, orthogonal after each step; then turned so that the first has most. */
function principal(sets, width) {
  let axes = [0, 1].map((n) => Float64Array.from({ length: width }, (_, i) => Math.sin(1 + i * (n + 1.37))));
  orthogonal(axes);
  for (let step = 0, before = 0; step < MOST_STEPS; step++) {
    axes = axes.map((axis) => times(sets, axis, width));
    const variance = Math.hypot(...axes.map((axis) => Math.sqrt(squares(axis))));
    orthogonal(axes);
    if (Math.abs(variance - before) <= STILL * variance) break;
    before = variance;
  }
  const [u, v] = axes.map((axis) => sets.map((rows) => along(rows, axis)));
  const dot = (a, b) => a.reduce((sum, part, s) => sum + part.reduce((t, value, i) => t + value * b[s][i], 0), 0);
  const angle = Math.atan2(2 * dot(u, v), dot(u, u) - dot(v, v)) / 2;
  const turned = (c, s) => axes[0].map((value, i) => c * value + s * axes[1][i]);
  return [turned(Math.cos(angle), Math.sin(angle)), turned(-Math.sin(angle), Math.cos(angle))];
}

/** X^T X axis, over all sets. */
function times(sets, axis, width) {
  const product = new Float64Array(width);
  for (const rows of sets) {
    const scores = along(rows, axis);
    for (let row = 0, at = 0; row < scores.length; row++, at += width) {
      for (let i = 0; i < width; i++) product[i] += scores[row] * rows[at + i];
    }
  }
  return product;
}

function along(rows, axis) {
  const width = axis.length, scores = new Float32Array(rows.length / width);
  for (let row = 0, at = 0; row < scores.length; row++, at += width) {
    let sum = 0;
    for (let i = 0; i < width; i++) sum += rows[at + i] * axis[i];
    scores[row] = sum;
  }
  return scores;
}

function orthogonal([u, v]) {
  scale(u, 1 / (Math.sqrt(squares(u)) || 1));
  let dot = 0;
  for (let i = 0; i < u.length; i++) dot += u[i] * v[i];
  for (let i = 0; i < u.length; i++) v[i] -= dot * u[i];
  scale(v, 1 / (Math.sqrt(squares(v)) || 1));
}

function scale(vector, by) {
  for (let i = 0; i < vector.length; i++) vector[i] *= by;
}

function squares(vector) {
  let sum = 0;
  for (let i = 0; i < vector.length; i++) sum += vector[i] * vector[i];
  return sum;
}

function unit(vectors, width) {
  const rows = vectors.slice();
  for (let at = 0; at < rows.length; at += width) {
    const row = rows.subarray(at, at + width);
    scale(row, 1 / (Math.sqrt(squares(row)) || 1));
  }
  return rows;
}

if (typeof WorkerGlobalScope !== "undefined") {
  self.onmessage = ({ data: { ends, width, labels } }) => {
    self.postMessage({ drawn: project(ends, width) });
    if (labels) self.postMessage({ agreement: ends.map((vectors) => agreement(vectors, width, labels)) });
  };
}
