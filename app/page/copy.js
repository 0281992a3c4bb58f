// "Copy as": the calls behind what is on the screen, in four languages. A key is only ever the variable KEY.

import { server } from "./api.js";
import { $, button } from "./dom.js";

const LANGUAGES = { curl, Python: python, JavaScript: javascript, OpenAI: openai };
let shown = { calls: [], needsKey: false, language: "curl" };

export function openCopy(calls, needsKey) {
  Object.assign(shown, { calls, needsKey });
  $("copy-languages").replaceChildren(...Object.keys(LANGUAGES).map((name) => button(name, () => choose(name))));
  choose(shown.language);
  $("copy").showModal();
}

function choose(language) {
  shown.language = language;
  for (const other of $("copy-languages").children) {
    other.setAttribute("aria-pressed", String(other.textContent === language));
  }
  $("copy-code").textContent = LANGUAGES[language](shown.calls, shown.needsKey);
  $("copy-status").textContent = "";
}

const address = ({ path, query }) => `${server}${path}${Object.keys(query).length ? `?${new URLSearchParams(query)}` : ""}`;
/** In single quotes for a shell. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
/** JSON of texts and lists is Python and JavaScript, too, once line separators are escaped. */
const literal = (value) => JSON.stringify(value)
  .replace(/[\u2028\u2029\u007f]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
const remark = (mark, { more }) => (more > 0 ? `${mark} and ${more} more texts\n` : "");

function curl(calls, needsKey) {
  return calls.map((call) => {
    const words = [`curl -s ${quoted(address(call))}`];
    if (call.method === "PUT") words[0] = `curl -s -X PUT ${quoted(address(call))}`;
    if (needsKey || call.files) words.push(`-H "Authorization: Bearer $KEY"`);
    if (call.type) words.push(`-H 'Content-Type: ${call.type}'`, `--data-binary ${quoted(`@${call.files[0]}`)}`);
    else if (call.files) words.push(...call.files.map((path) => `-F ${quoted(`${path}=@${path}`)}`));
    if (call.body) words.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(call.body))}`);
    return remark("#", call) + words.join(" \\\n  ");
  }).join("\n");
}

function python(calls, needsKey) {
  const key = needsKey || calls.some((call) => call.files);
  const lines = key ? ["import os", "", "import httpx", ""] : ["import httpx", ""];
  lines.push(key ? `client = httpx.Client(headers={"Authorization": f"Bearer {os.environ['KEY']}"})` : "client = httpx.Client()");
  for (const call of calls) {
    const given = [literal(address(call))];
    if (call.body) given.push(`json=${literal(call.body)}`);
    const opened = (path) => `open(${literal(path)}, "rb")`;
    if (call.type) given.push(`content=${opened(call.files[0])}.read()`, `headers={"Content-Type": ${literal(call.type)}}`);
    else if (call.files) given.push(`files={${call.files.map((path) => `${literal(path)}: ${opened(path)}`).join(", ")}}`);
    lines.push(`${remark("#", call)}answer = client.${call.method.toLowerCase()}(${given.join(", ")})`, "print(answer.json())");
  }
  return lines.join("\n");
}

function javascript(calls, needsKey) {
  return calls.map((call) => {
    const sent = {};
    if (call.body) sent["Content-Type"] = "application/json";
    if (call.type) sent["Content-Type"] = call.type;
    const parts = Object.entries(sent).map(([name, value]) => `${literal(name)}: ${literal(value)}`);
    if (needsKey || call.files) parts.push('Authorization: `Bearer ${process.env.KEY}`');
    const options = [`method: ${literal(call.method)}`];
    if (parts.length) options.push(`headers: { ${parts.join(", ")} }`);
    if (call.body) options.push(`body: JSON.stringify(${literal(call.body)})`);
    let before = "";
    if (call.files) {
      before = 'import { openAsBlob } from "node:fs";\n';
      if (call.type) options.push(`body: await openAsBlob(${literal(call.files[0])})`);
      else {
        before += "const form = new FormData();\n";
        for (const path of call.files.map(literal)) before += `form.append(${path}, await openAsBlob(${path}), ${path});\n`;
        options.push("body: form");
      }
    }
    const asked = `fetch(${literal(address(call))}, {\n  ${options.join(",\n  ")},\n})`;
    return `${remark("//", call)}${before}console.log(await (await ${asked}).json());`;
  }).join("\n");
}

function openai(calls, needsKey) {
  const key = needsKey ? `os.environ["KEY"]` : `"none"`;
  const lines = [...(needsKey ? ["import os", ""] : []), "import openai", "",
    `client = openai.OpenAI(base_url=${literal(`${server}v1`)}, api_key=${key})`];
  const asked = calls.filter((call) => call.body);
  if (!asked.length) return [...lines, "print(client.models.list())"].join("\n");
  if (asked.some((call) => call.path !== "embed")) lines.push("# OpenAI's API has no labels: these are the adapters' vectors.");
  for (const call of asked) {
    const input = call.body.inputs ?? [call.body.query, ...call.body.texts];
    const model = literal(call.query.adapter ?? "base");
    lines.push(`${remark("#", call)}print(client.embeddings.create(model=${model}, input=${literal(input)}))`);
  }
  return lines.join("\n");
}

$("copy-close").addEventListener("click", () => $("copy").close());
$("copy-do").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("copy-code").textContent);
    $("copy-status").textContent = "Copied.";
  } catch { // no secure context: a plain http address
    getSelection().selectAllChildren($("copy-code"));
    $("copy-status").textContent = "Selected: copy it with your keyboard.";
  }
});
