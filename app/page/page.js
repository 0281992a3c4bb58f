// The frame: tabs, the key, what the server says of itself.

import { about, lookAround, may, useKey } from "./api.js";
import { $ } from "./dom.js";
import { openCopy } from "./copy.js";
import * as adaptersTab from "./adapters.js";
import * as liveTab from "./live.js";
import * as mapTab from "./map.js";
import * as tryTab from "./try.js";

// Each has show(), called when it is opened and when the key has changed; hide(); calls(), for "Copy as".
const TABS = { try: tryTab, map: mapTab, adapters: adaptersTab, live: liveTab };
let open = null;

export function openTab(name) {
  if (open) TABS[open].hide();
  open = name;
  for (const other of Object.keys(TABS)) {
    const tab = $(`tab-${other}`);
    tab.setAttribute("aria-selected", String(other === name));
    tab.tabIndex = other === name ? 0 : -1;
    $(other).hidden = other !== name;
  }
  history.replaceState(null, "", `#/${name}`); // no element's id: the Tab key begins at the top
  TABS[name].show();
}

function listenToTabs() {
  const names = Object.keys(TABS);
  for (const name of names) $(`tab-${name}`).addEventListener("click", () => openTab(name));
  document.querySelector('[role="tablist"]').addEventListener("keydown", (event) => {
    const at = names.indexOf(open);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1 + names.length, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    openTab(names[to % names.length]);
    $(`tab-${open}`).focus();
  });
  document.addEventListener("open-tab", (event) => openTab(event.detail));
}

async function look() {
  try {
    const told = await lookAround();
    $("about").textContent = `${told.base ?? "a base that is told with a key"} · version ${told.version}`
      + (told.status === "ready" ? "" : ` · ${told.status}`);
    $("may").textContent = spoken();
  } catch (error) {
    $("about").textContent = `The server does not answer: ${error.message}`;
  }
  const named = location.hash.slice(2);
  openTab(open ?? (Object.hasOwn(TABS, named) ? named : "try"));
}

function spoken() {
  if (may("change")) return "may change adapters";
  if (may("ask")) return "read-only";
  return $("key").value ? "this key is not known here" : "a key is needed";
}

function takeKey() {
  useKey($("key").value);
  look();
}

listenToTabs();
$("use-key").addEventListener("click", takeKey);
$("key").addEventListener("keydown", (event) => {
  if (event.key === "Enter") takeKey();
});
$("copy-open").addEventListener("click", () => openCopy(TABS[open].calls(), about.needsKey));
look();
