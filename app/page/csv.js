// Pasted or opened text -> rows: one text a line, or a table with its header.

const NAMES = { text: /^(text|sentence|utterance|question|query|content|message|input|tweet|review)s?$/i,
  label: /^(label|intent|class|category|target|sentiment|topic|tag|y)(_?(name|text))?s?$/i };

/** {columns: [names], rows: [[cells]]}; columns is null for plain lines. */
export function read(source) {
  const text = source.replace(/^\uFEFF/, "");
  const objects = jsonLines(text);
  if (objects) return objects;
  for (const delimiter of ["\t", ",", ";"]) {
    const rows = cells(text, delimiter).filter((row) => row.some((cell) => cell.trim()));
    const width = rows[0]?.length ?? 0;
    const even = rows.length > 1 && width > 1 && rows.every((row) => row.length === width);
    if (even && isHeader(rows[0])) return { columns: rows[0].map((name) => name.trim()), rows: rows.slice(1) };
  }
  const lines = text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
  return { columns: null, rows: lines.map((line) => [line]) };
}

/** The columns that are likely the text and the label; -1: none. */
export function guess(columns, rows) {
  const label = columns.findIndex((name) => NAMES.label.test(name));
  const named = columns.findIndex((name) => NAMES.text.test(name));
  const length = (i) => rows.slice(0, 50).reduce((sum, row) => sum + row[i].length, 0);
  const longest = columns.map((_, i) => i).reduce((a, b) => (length(b) > length(a) ? b : a), 0);
  const text = named >= 0 ? named : longest;
  return { text, label: label === text ? -1 : label };
}

/** A header names its columns: short cells, all different, none of them a number. */
function isHeader(row) {
  const names = row.map((cell) => cell.trim());
  return new Set(names).size === names.length
    && names.every((name) => name && name.length <= 40 && Number.isNaN(Number(name)) && !/[.!?]$/.test(name));
}

/** RFC 4180: quoted cells may hold delimiters, line ends and doubled quotes. */
export function cells(text, delimiter) {
  const rows = [];
  let row = [], cell = "", quoted = false;
  const endRow = () => { rows.push([...row, cell]); row = []; cell = ""; };
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) {
      if (c !== '"') cell += c;
      else if (text[i + 1] === '"') { cell += c; i++; }
      else quoted = false;
    } else if (c === '"' && cell === "") quoted = true;
    else if (c === delimiter) { row.push(cell); cell = ""; }
    else if (c === "\n") endRow();
    else if (c !== "\r") cell += c;
  }
  if (cell || row.length) endRow();
  return rows;
}

function jsonLines(text) {
  if (!text.trimStart().startsWith("{")) return null;
  try {
    const objects = text.split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line));
    const columns = Object.keys(objects[0]);
    return { columns, rows: objects.map((o) => columns.map((name) => String(o[name] ?? ""))) };
  } catch {
    return null;
  }
}
