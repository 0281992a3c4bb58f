// The server's public HTTP API, and the key, which is held in this variable and nowhere else.

/** Where the server is: the page's own folder, so that it works below a proxy's prefix. */
export const server = new URL(".", document.baseURI).href;
let key = "";
export const about = { may: [], needsKey: false };

export function useKey(text) {
  key = text.trim();
}

export const headers = (more = {}) => (key ? { ...more, Authorization: `Bearer ${key}` } : more);
export const may = (what) => about.may.includes(what);

/** What the server refused, in its own words. */
export class Refused extends Error {
  constructor(status, body) {
    const error = typeof body?.error === "string" ? body.error : body?.error?.message;
    super(error ?? `the server answered ${status}`);
    this.status = status;
    this.type = body?.error_type ?? "";
    this.problems = body?.problems ?? [];
  }
}

/** One request; a 429 is sent again when the server says so. Throws Refused. */
export async function ask(path, { method = "GET", body, accept, signal, more = {} } = {}) {
  const sent = headers({ Accept: accept ?? "application/json", ...more });
  if (body !== undefined) sent["Content-Type"] = "application/json";
  for (let again = 0; ; again++) {
    const answer = await fetch(server + path, {
      method, signal, headers: sent, body: body === undefined ? undefined : JSON.stringify(body),
    });
    if (answer.ok) return answer;
    const wait = Number(answer.headers.get("retry-after-ms"));
    if (answer.status !== 429 || !(wait >= 0) || again === 8) {
      throw new Refused(answer.status, await answer.json().catch(() => null));
    }
    await pause(wait, signal);
  }
}

export const json = async (path, options) => (await ask(path, options)).json();

/** Ask whose key this is, and what it may. Returns the answer of GET /. */
export async function lookAround() {
  const told = await json("");
  Object.assign(about, told, { needsKey: told.example.includes("$KEY") });
  return told;
}

/** Vectors as raw floats: {vectors: Float32Array, rows, width, space, adapter, timing}. */
export async function embed(adapter, texts, { signal, bulk = false } = {}) {
  const answer = await ask(`embed?adapter=${encodeURIComponent(adapter)}`, {
    method: "POST", body: { inputs: texts }, accept: "application/octet-stream", signal,
    more: bulk ? { "X-Priority": "bulk" } : {},
  });
  const [rows, width] = answer.headers.get("x-shape").split(",").map(Number);
  return {
    vectors: new Float32Array(await answer.arrayBuffer()), rows, width,
    space: answer.headers.get("x-embedding-space"), ...served(answer),
  };
}

/** Which version answered, and the milliseconds of the model. */
export function served(answer) {
  const timing = /inference;dur=([\d.]+)/.exec(answer.headers.get("server-timing") ?? "");
  return { adapter: answer.headers.get("x-adapter") ?? "", model: timing ? Number(timing[1]) : null };
}

/** Up to `limit` adapters by name, how many there are in all (null: nobody knows), and where the next page begins. */
export async function adapters({ limit = 100, q = "", after = "" } = {}) {
  const query = new URLSearchParams({ limit, ...(q && { q }), ...(after && { after }) });
  const answer = await ask(`adapters?${query}`);
  const total = answer.headers.get("x-total-count");
  const next = /[?&]after=([^&>]+)/.exec(answer.headers.get("link") ?? "");
  return { list: await answer.json(), total: total && Number(total), next: next && decodeURIComponent(next[1]) };
}

export function cosines(vector, vectors, width) {
  const norm = (start, array) => {
    let sum = 0;
    for (let i = 0; i < width; i++) sum += array[start + i] ** 2;
    return Math.sqrt(sum) || 1;
  };
  const own = norm(0, vector);
  return Float64Array.from({ length: vectors.length / width }, (_, row) => {
    let sum = 0;
    for (let i = 0; i < width; i++) sum += vector[i] * vectors[row * width + i];
    return sum / (own * norm(row * width, vectors));
  });
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
