// TeX in markdown: \( \), \[ \], $ $ and $$ $$. KaTeX renders it, and is loaded for the first formula.
//
// A formula is shown as its source until KaTeX is loaded, and if it is invalid. TeX is not trusted:
// links, HTML and images in it are disabled, and so are sizes that would cover the page.

import { later } from "./idle.js";

const DELIMITERS = [
  { open: "\\(", close: "\\)", isDisplay: false },
  { open: "\\[", close: "\\]", isDisplay: true },
  { open: "$$", close: "$$", isDisplay: true },
  { open: "$", close: "$", isDisplay: false },
];
const MAX_CHARACTERS = 4000; // of a formula
const MAX_LINES = 100;
const MAX_CACHED = 200;
const OPTIONS = {
  trust: false,
  strict: "ignore", // no warnings in the console
  throwOnError: true,
  maxSize: 10, // em
  maxExpand: 500,
  // Their MathML has style attributes, which the content security policy forbids.
  macros: { "\\pmb": "\\boldsymbol{#1}", "\\fcolorbox": "\\colorbox{#2}{#3}" },
};

const cache = new Map(); // rendered formulas; the text that is being streamed repeats them
let katex; // a promise, once it is requested

/** Add the rules for formulas to a markdown-it parser: tokens of type "math". */
export function addMath(parser) {
  const alt = ["paragraph", "reference", "blockquote", "list"];
  parser.block.ruler.before("fence", "math", parseBlock, { alt });
  parser.inline.ruler.before("escape", "math", parseInline);
  const { escapeHtml } = parser.utils;
  parser.renderer.rules.math = (tokens, i) => `<math>${escapeHtml(sourceOf(tokens[i]))}</math>`;
}

/** Return the element of a token of type "math". */
export function mathNode(token) {
  const node = document.createElement("span");
  const { isDisplay } = token.meta;
  node.className = isDisplay ? "math display" : "math";
  if (isDisplay) node.tabIndex = 0; // it scrolls
  const rendered = cache.get(sourceOf(token));
  if (rendered) {
    node.append(rendered.cloneNode(true));
  } else {
    node.textContent = sourceOf(token);
    if (token.content.length <= MAX_CHARACTERS) render(node, token);
  }
  return node;
}

async function render(node, token) {
  const library = await load();
  later(() => {
    if (!library || !node.isConnected) return; // its text has changed
    const target = document.createElement("span");
    try {
      library.render(token.content, target, { ...OPTIONS, displayMode: token.meta.isDisplay });
    } catch (error) {
      node.classList.add("invalid");
      node.title = error.message;
      return;
    }
    if (cache.size >= MAX_CACHED) cache.clear();
    cache.set(sourceOf(token), target.firstChild);
    node.replaceChildren(target.firstChild.cloneNode(true));
  });
}

/** Return KaTeX; undefined if it cannot be loaded. */
function load() {
  katex ??= (async () => {
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = new URL("./katex/katex.min.css", import.meta.url);
    document.head.append(link);
    try {
      await import("./katex/katex.min.js"); // https://katex.org, 0.19.1; it sets a global
      return globalThis.katex;
    } catch {
      katex = undefined; // the next formula tries again
      return undefined;
    }
  })();
  return katex;
}

function sourceOf({ content, meta: { open, close } }) {
  return `${open}${content}${close}`;
}

function parseInline(state, silent) {
  const { src, pos, posMax } = state;
  const kind = DELIMITERS.find(({ open }) => src.startsWith(open, pos));
  if (!kind) return false;
  const start = pos + kind.open.length;
  const end = kind.open === "$" ? dollarAfter(state, start) : closeAfter(state, kind, start);
  if (end < 0 || end + kind.close.length > posMax) return false;
  const content = src.slice(start, end).trim();
  if (!content) return false;
  if (!silent) Object.assign(state.push("math", "math", 0), { content, meta: kind });
  state.pos = end + kind.close.length;
  return true;
}

/** Return the position of the delimiter that closes a formula; -1 if there is none. */
function closeAfter(state, { close }, start) {
  state.unclosed ??= new Set(); // each is searched for to the end of the text once
  if (state.unclosed.has(close)) return -1;
  const end = state.src.indexOf(close, start);
  if (end < 0) state.unclosed.add(close);
  return end;
}

/** As closeAfter, for a dollar: prices are not formulas, so spaces and digits next to it count. */
function dollarAfter({ src }, start) {
  if (!/[^\s$]/.test(src[start] ?? "")) return -1;
  let end = src.indexOf("$", start + 1);
  while (src[end - 1] === "\\") end = src.indexOf("$", end + 1);
  return end >= 0 && !/\s/.test(src[end - 1]) && !/\d/.test(src[end + 1] ?? "") ? end : -1;
}

/** Parse a formula in lines of its own. */
function parseBlock(state, startLine, endLine, silent) {
  const lineStart = (line) => state.bMarks[line] + state.tShift[line];
  if (state.sCount[startLine] - state.blkIndent >= 4) return false; // a code block
  const kind = DELIMITERS.find(
    ({ open, isDisplay }) => isDisplay && state.src.startsWith(open, lineStart(startLine)),
  );
  if (!kind) return false;
  const lines = [];
  for (let line = startLine; line < Math.min(endLine, startLine + MAX_LINES); line++) {
    const isInside = state.sCount[line] >= state.blkIndent && !state.isEmpty(line);
    if (!isInside) return false;
    const from = lineStart(line) + (line === startLine ? kind.open.length : 0);
    const text = state.src.slice(from, state.eMarks[line]);
    const end = text.indexOf(kind.close);
    lines.push(end < 0 ? text : text.slice(0, end));
    if (end < 0) continue;
    const content = lines.join("\n").trim();
    if (text.slice(end + kind.close.length).trim() || !content) return false;
    if (silent) return true;
    const token = state.push("math", "math", 0);
    Object.assign(token, { content, meta: kind, block: true, map: [startLine, line + 1] });
    state.line = line + 1;
    return true;
  }
  return false;
}
