// The markdown inside a paragraph: emphasis, code, links and breaks, as DOM nodes.
//
// The text is a model's and is not trusted: nodes are made with createElement and text only, and
// the time is linear in its length, since a delimiter that found no end is not looked for again.

const SPECIAL = /[\\`*_~[!<\n]|https?:\/\//g;
const ESCAPE = /\\([!-/:-@[-`{-~])/y;
const TICKS = /`+/y;
const EMPHASIS = /\*{1,3}|_{1,3}|~~/y;
const LABEL = String.raw`!?\[((?:[^[\]\\]|\\.)*)\]`;
const TARGET = String.raw`<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?`;
const LINK = new RegExp(String.raw`${LABEL}\(\s*${TARGET}(?:\s+"[^"]*")?\s*\)`, "y");
const ADDRESS = /<(https?:\/\/[^\s<>]*)>|(https?:\/\/[^\s<>]*[^\s<>.,;:!?'"*_~`)\]|])/y;
const BREAK = /<br ?\/?>|\\?\n/y;
const WORD = /[\p{L}\p{N}]/u;

const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const TAGS = { "*": ["em"], "_": ["em"], "**": ["strong"], "__": ["strong"], "~~": ["del"] };
const TAGS_OF_THREE = ["strong", "em"];
const MAX_DEPTH = 6;

/** Return the nodes of a text. Within a link, `hasLinks` is false: links do not nest. */
export function inline(text, depth = 0, hasLinks = true) {
  const nodes = [];
  const absent = new Set();
  let plain = "";
  let at = 0;
  const add = (node) => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
    nodes.push(node);
  };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(at, next);
    if (next === text.length) break;
    const found = special(text, next, depth, hasLinks, absent);
    if (found?.node) add(found.node);
    else plain += found?.plain ?? text[next];
    at = found?.end ?? next + 1;
  }
  if (plain) nodes.push(document.createTextNode(plain));
  return nodes;
}

/** Return what is marked up at a position, as {node or plain, end}, or nothing. */
function special(text, at, depth, hasLinks, absent) {
  switch (text[at]) {
    case "`":
      return code(text, at);
    case "*":
    case "_":
    case "~":
      return emphasis(text, at, depth, hasLinks, absent);
    case "[":
    case "!":
      return hasLinks ? link(text, at, depth) : null;
    case "\\": {
      const escape = match(ESCAPE, text, at);
      return escape ? { plain: escape[1], end: at + 2 } : lineBreak(text, at);
    }
    case "h":
      return hasLinks ? address(text, at) : null;
    default:
      return lineBreak(text, at) ?? (hasLinks ? address(text, at) : null);
  }
}

/** Code. A run of ticks that finds no end is the only one of its length, and thus looks alone. */
function code(text, at) {
  const [ticks] = match(TICKS, text, at);
  const from = at + ticks.length;
  for (let to = from; (to = text.indexOf(ticks, to)) >= 0; ) {
    const [run] = match(TICKS, text, to);
    if (run === ticks) {
      const inner = text.slice(from, to).replaceAll("\n", " ");
      const isPadded = /^ .*[^ ].* $/.test(inner);
      const node = element("code", [isPadded ? inner.slice(1, -1) : inner]);
      return { node, end: to + ticks.length };
    }
    to += run.length;
  }
  return { plain: ticks, end: from };
}

function emphasis(text, at, depth, hasLinks, absent) {
  const mark = match(EMPHASIS, text, at)?.[0];
  if (!mark) return null;
  const from = at + mark.length;
  const literal = { plain: mark, end: from };
  const isOpening = from < text.length && !/\s/.test(text[from]);
  const isInWord = mark[0] === "_" && at > 0 && WORD.test(text[at - 1]);
  if (!isOpening || isInWord || absent.has(mark) || depth >= MAX_DEPTH) return literal;
  const to = closing(text, from + 1, mark);
  if (to < 0) {
    absent.add(mark);
    return literal;
  }
  const tags = TAGS[mark] ?? TAGS_OF_THREE;
  const inner = inline(text.slice(from, to), depth + 1, hasLinks);
  const node = tags.reduceRight((children, tag) => [element(tag, children)], inner)[0];
  return { node, end: to + mark.length };
}

/** Return where a mark closes from a position on, or -1. */
function closing(text, from, mark) {
  for (let to = from; (to = text.indexOf(mark, to)) >= 0; to += 1) {
    const [sign] = mark;
    const isBehindText = !/[\s\\]/.test(text[to - 1]);
    const isPartOfLonger = mark.length === 1 && (text[to - 1] === sign || text[to + 1] === sign);
    while (mark.length === 2 && text[to + 2] === sign) to += 1;
    const after = text[to + mark.length] ?? " ";
    if (isBehindText && !isPartOfLonger && !(sign === "_" && WORD.test(after))) return to;
  }
  return -1;
}

/** A link; an image is never loaded, and is a link too. */
function link(text, at, depth) {
  const found = match(LINK, text, at);
  const node = found && anchor(found[2]);
  if (!node) return null;
  node.append(...inline(found[1] || found[2], depth + 1, false));
  return { node, end: at + found[0].length };
}

function address(text, at) {
  const found = match(ADDRESS, text, at);
  const node = found && anchor(found[1] ?? found[2]);
  if (!node) return null;
  node.textContent = found[1] ?? found[2];
  return { node, end: at + found[0].length };
}

function lineBreak(text, at) {
  const found = match(BREAK, text, at);
  return found && { node: document.createElement("br"), end: at + found[0].length };
}

/** Return an empty link to an address, or null if it is not one that a reader may follow. */
function anchor(href) {
  if (!URL.canParse(href)) return null;
  const url = new URL(href);
  if (!SCHEMES.has(url.protocol) || url.username || url.password) return null;
  const node = document.createElement("a");
  node.href = url.href;
  node.title = url.href;
  node.rel = "noopener noreferrer";
  node.target = "_blank";
  return node;
}

function element(tag, children) {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
}

function match(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}
