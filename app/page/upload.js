// Bringing an adapter: files dropped or chosen, the check's report before anything is served, then the upload.

import { Refused, headers, json, may, server } from "./api.js";
import { $, bytes, el, facts, hash, percent } from "./dom.js";
import { grid, refusedModules } from "./grid.js";

const OF_AN_ADAPTER = /\.(safetensors|json|jsonl)$/; // what is sent of a folder: nothing else is read there
const ARCHIVES = { zip: "application/zip", tar: "application/x-tar", tgz: "application/gzip", gz: "application/gzip" };
let files = []; // [{path, file}]
let checked = ""; // name and query that were checked, and may be served
let done = () => {};

export function listen(served) {
  done = served;
  const drop = $("drop");
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", async (event) => {
    event.preventDefault();
    take(await dropped(event.dataTransfer.items));
  });
  for (const id of ["upload-file", "upload-folder"]) {
    $(id).addEventListener("change", ({ target }) => {
      take([...target.files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));
      target.value = "";
    });
  }
  for (const id of ["upload-name", "upload-labels", "upload-task", "upload-alpha", "upload-path"]) {
    $(id).addEventListener("input", () => offer(false));
  }
  $("upload-check").addEventListener("click", check);
  $("upload-serve").addEventListener("click", serve);
}

/** Files and folders of a drop, with their paths. */
async function dropped(items) {
  const found = [];
  const walk = async (entry, before) => {
    if (entry.isFile) found.push({ path: before + entry.name, file: await new Promise((ok, no) => entry.file(ok, no)) });
    else {
      const reader = entry.createReader();
      for (let part; (part = await new Promise((ok, no) => reader.readEntries(ok, no))).length;) {
        for (const inner of part) await walk(inner, `${before}${entry.name}/`);
      }
    }
  };
  for (const entry of [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean)) await walk(entry, "");
  return found;
}

function take(all) {
  if (!all.length) return;
  const archive = all.length === 1 && typeOf(all[0].path) !== null;
  files = archive ? all : all.filter(({ path }) => OF_AN_ADAPTER.test(path));
  const size = files.reduce((sum, { file }) => sum + file.size, 0);
  const aside = all.length - files.length;
  const names = files.slice(0, 8).map(({ path }) => path).join(", ") + (files.length > 8 ? ", …" : "");
  $("upload-files").textContent = `${names} · ${bytes(size)}`
    + (aside ? ` · ${aside} other ${aside === 1 ? "file stays" : "files stay"} here` : "");
  $("upload-name").value = nameOf(all);
  $("upload-form").hidden = false;
  offer(false);
  $("upload-report").replaceChildren();
  say(files.length ? "Nothing is served before you say so." : "There is no adapter in it.");
  $("upload-check").focus();
}

/** Whether what was checked may be served now. exists: its name is served already. */
function offer(on, exists = false) {
  $("upload-serve").hidden = !on;
  $("upload-stage-label").hidden = !exists;
  $("upload-stage").checked = false;
  $("upload-serve").textContent = exists ? "Replace the one that is served" : "Serve it";
  $("upload-check").classList.toggle("main", !on);
}

/** The media type of a single file that is sent as it is; null: files of a folder. */
function typeOf(path) {
  const ending = path.toLowerCase().split(".").at(-1);
  return ending === "safetensors" ? "application/octet-stream" : ARCHIVES[ending] ?? null;
}

/** A name that the server takes, from the folder's or the file's. */
function nameOf(all) {
  const parts = all[0].path.split("/");
  const folder = parts.length > 1 ? parts[0] : parts[0].replace(/\.(safetensors|zip|tar|tgz|gz|json)$/i, "").replace(/\.tar$/i, "");
  const name = folder.toLowerCase().replace(/[^a-z0-9._-]+/g, "-").replace(/^[^a-z0-9]+/, "").slice(0, 63);
  return /^(adapter_model|adapter_config|)$/.test(name) ? "my-adapter" : name;
}

/** What is said beside the files. */
function query() {
  const said = ["labels", "task", "alpha", "path"].map((name) => [name, $(`upload-${name}`).value.trim()]);
  return Object.fromEntries(said.filter(([, value]) => value));
}

const name = () => $("upload-name").value.trim();
const target = (more) => `adapters/${encodeURIComponent(name())}?${new URLSearchParams({ ...query(), ...more })}`;

async function check() {
  const subject = target({});
  offer(false);
  $("upload-report").replaceChildren();
  try {
    const report = await send(target({ dry_run: true }), "Checking …");
    const exists = await isServed(report.name);
    $("upload-report").replaceChildren(...reported(report));
    checked = subject;
    offer(true, exists);
    say(`It would be served as ${report.name}. Nothing is served yet.`);
  } catch (error) {
    await refused(error);
  }
}

async function isServed(name) {
  return (await json(`adapters?${new URLSearchParams({ prefix: name, limit: 1 })}`))[0]?.name === name;
}

async function serve() {
  if (target({}) !== checked) return check();
  const stage = $("upload-stage").checked;
  try {
    const adapter = await send(target(stage ? { stage: true } : {}), "Installing …");
    say(stage ? `Held beside ${adapter.name}: begin a canary under its versions.` : `${adapter.name} is served.`);
    offer(false);
    if (!stage) $("upload-status").append(" ", el("button", { type: "button", onclick: () => {
      document.dispatchEvent(new CustomEvent("try-adapter", { detail: adapter.name }));
      document.dispatchEvent(new CustomEvent("open-tab", { detail: "try" }));
    } }, "Try it"));
    done();
  } catch (error) {
    await refused(error);
  }
}

/** PUT the files, with progress, which fetch cannot tell of. Returns the answer; throws Refused. */
function send(path, after) {
  const request = new XMLHttpRequest();
  request.open("PUT", server + path);
  for (const [name, value] of Object.entries(headers({ Accept: "application/json" }))) request.setRequestHeader(name, value);
  let body = files[0]?.file;
  const type = files.length === 1 ? typeOf(files[0].path) : null;
  if (type) request.setRequestHeader("Content-Type", type);
  else {
    body = new FormData();
    for (const { path: name, file } of files) body.append(name, file, name);
  }
  const bar = $("upload-progress");
  bar.hidden = false;
  bar.value = 0;
  say("Sending …");
  $("upload-check").disabled = $("upload-serve").disabled = true;
  return new Promise((resolve, reject) => {
    request.upload.onprogress = ({ loaded, total }) => { bar.value = loaded / total; };
    request.upload.onload = () => { bar.removeAttribute("value"); say(after); };
    request.onerror = () => reject(new Error("the connection broke"));
    request.onload = () => {
      let answer = null;
      try { answer = JSON.parse(request.responseText); } catch { /* a proxy's own page */ }
      if (request.status < 300 && answer) resolve(answer);
      else reject(new Refused(request.status, answer));
    };
    request.send(body);
  }).finally(() => {
    bar.hidden = true;
    $("upload-check").disabled = $("upload-serve").disabled = false;
  });
}

function reported(report) {
  return [
    report.warnings.length ? el("ul", { class: "problems" }, report.warnings.map((text) => el("li", {}, text))) : null,
    description(report), el("h2", {}, "What it changes"), grid(report.changes),
  ].filter(Boolean);
}

/** What the server has read, in a list, and what else is to be in it. */
export function description(a, more = []) {
  const labels = a.labels.slice(0, 6).join(", ") + (a.labels.length > 6 ? ` and ${a.labels.length - 6} more` : "");
  return facts([
    ["Version", hash(a.version)],
    ["Task", a.task + (a.scores && a.scores !== "none" ? `, ${a.scores}` : "")],
    ["Labels", labels],
    ["Kind", `${a.kind}, rank ${a.rank}${a.scale == null ? "" : `, scale ${a.scale}`}`],
    ["Size", `${bytes(a.bytes)}, ${a.tensors.used} of ${a.tensors.in_file} tensors used`],
    ["Effect", `moves the output by ${percent(a.delta.relative)}`],
    ["Certificate", a.certified ? `${a.certified} answers hold` : null],
    ...more,
  ]);
}

/** Why it would not be served, by tensor; and where in the base these are. */
async function refused(error) {
  say(`Refused: ${error.message}`, true);
  const problems = error.problems ?? [];
  if (!problems.length) return;
  const list = el("ul", { class: "problems" }, problems.map(({ tensor, field, reason }) => el("li", {},
    tensor || field ? el("code", {}, tensor ?? field) : null, tensor || field ? ": " : "", reason)));
  $("upload-report").replaceChildren(list);
  if (!may("ask")) return;
  const { modules } = await json("info?modules=true");
  const where = refusedModules(problems, modules);
  if (Object.keys(where).length) list.after(grid(Object.fromEntries(modules.map((path) => [path, null])), where));
}

function say(text, bad = false) {
  $("upload-status").textContent = text;
  $("upload-status").className = bad ? "bad" : "";
}

/** The check that is on the screen, as a call; null where there is none. */
export function call() {
  if ($("upload-form").hidden || !files.length) return null;
  const type = files.length === 1 ? typeOf(files[0].path) : null;
  return { method: "PUT", path: `adapters/${name()}`, query: { ...query(), dry_run: true },
    files: files.map(({ path }) => path), type };
}
