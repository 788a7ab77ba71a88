// Markdown to DOM nodes: markdown-it parses, this file builds the nodes.
//
// The text is a model's output and is not trusted: HTML in it is text, nodes are made with
// createElement only, and images are links. It may be incomplete: an open fence extends to the end.

import { codeBlock, highlightCode, setCode } from "./code.js";
import MarkdownIt from "./markdown-it.js"; // https://github.com/markdown-it/markdown-it, 15.0.3
import { addMath, mathNode } from "./math.js";

const ALIGNMENTS = { "text-align:right": "right", "text-align:center": "centred" };

const parser = new MarkdownIt({ html: false, linkify: true, breaks: true });
parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
parser.validateLink = isAllowed;
addMath(parser);
parser.inline.ruler.before("html_inline", "br", (state, silent) => {
  const found = /^<br ?\/?>/i.exec(state.src.slice(state.pos, state.pos + 6));
  if (!found) return false;
  if (!silent) state.push("hardbreak", "br", 0);
  state.pos += found[0].length;
  return true;
});

/**
 * Make an element show a text. Blocks at its start that have not changed keep their nodes. While the
 * text `isGrowing`, code in its last block is not coloured.
 */
export function renderMarkdown(element, text, isGrowing = false) {
  const shown = element.blocks ?? [];
  const blocks = split(parser.parse(text, {}));
  blocks.forEach((block, i) => {
    const old = shown[i];
    if (old && isUpToDate(old, block)) {
      block.node = old.node;
      block.isColoured = old.isColoured && old.key === block.key;
    } else {
      block.node = nodesOf(block.tokens)[0];
      if (old) old.node.replaceWith(block.node);
      else element.append(block.node);
    }
  });
  shown.slice(blocks.length).forEach((block) => block.node.remove());
  for (const block of isGrowing ? blocks.slice(0, -1) : blocks) {
    if (!block.isColoured) highlightCode(block.node);
    block.isColoured = true;
  }
  element.blocks = blocks;
}

/** Return the top-level blocks of tokens, as {tokens, key}: blocks with equal keys look the same. */
function split(tokens) {
  const blocks = [];
  let start = 0;
  tokens.forEach((token, i) => {
    if (token.level > 0 || token.nesting > 0) return;
    const block = tokens.slice(start, i + 1);
    start = i + 1;
    blocks.push({ tokens: block, key: parser.renderer.render(block, parser.options, {}) });
  });
  return blocks;
}

/** Whether a shown block equals a new one, or is code that could be changed in place. */
function isUpToDate(old, block) {
  if (old.key === block.key) return true;
  const isCode = [old, block].every(({ tokens }) => tokens[0].type === "fence");
  return isCode && setCode(old.node, ...codeOf(block.tokens[0]));
}

/** Return the text of a code block, and its language. */
function codeOf(token) {
  return [token.content.replace(/\n$/, ""), token.info.trim().split(" ")[0]];
}

function nodesOf(tokens) {
  const open = [document.createDocumentFragment()];
  for (const token of tokens) {
    if (token.hidden) continue; // the paragraph of a tight list
    if (token.nesting > 0) {
      const { outer, inner } = container(token);
      open.at(-1).append(outer);
      open.push(inner);
    } else if (token.nesting < 0) {
      open.pop();
    } else {
      open.at(-1).append(...leaf(token));
    }
  }
  return [...open[0].childNodes];
}

/** Return the element of an opening token, and where its content goes. */
function container(token) {
  if (token.type === "link_open") {
    const node = anchor(token.attrGet("href"));
    return { outer: node, inner: node };
  }
  const node = document.createElement(tagOf(token));
  if (token.attrGet("start")) node.start = token.attrGet("start");
  const alignment = ALIGNMENTS[token.attrGet("style")];
  if (alignment) node.className = alignment;
  if (token.tag !== "table") return { outer: node, inner: node };
  const frame = document.createElement("div");
  frame.className = "table";
  frame.tabIndex = 0; // it scrolls
  frame.append(node);
  return { outer: frame, inner: node };
}

function tagOf({ type, tag }) {
  if (type === "heading_open") return `h${Math.min(6, Number(tag[1]) + 2)}`; // h1, h2 are the page's
  return tag === "s" ? "del" : tag;
}

/** Return the nodes of a token that is complete in itself. */
function leaf(token) {
  switch (token.type) {
    case "inline":
      return nodesOf(token.children);
    case "fence":
    case "code_block":
      return [codeBlock(...codeOf(token))];
    case "code_inline": {
      const node = document.createElement("code");
      node.textContent = token.content;
      return [node];
    }
    case "math":
      return [mathNode(token)];
    case "hr":
    case "hardbreak":
    case "softbreak":
      return [document.createElement(token.type === "hr" ? "hr" : "br")];
    case "image": {
      const node = anchor(token.attrGet("src"));
      node.append(token.content || node.href);
      return [node];
    }
    default:
      return [document.createTextNode(token.content)];
  }
}

/** Whether a reader may follow a link: a mail address, or a whole URL without credentials. */
function isAllowed(href) {
  if (!URL.canParse(href)) return false;
  const { protocol, hostname, username, password } = new URL(href);
  if (protocol === "mailto:") return true;
  // A name without a dot is a user name before an @, or an incomplete address.
  const isHost = /[.:]|^localhost$/.test(hostname);
  return (protocol === "https:" || protocol === "http:") && isHost && !username && !password;
}

function anchor(href) {
  const node = document.createElement("a");
  node.href = new URL(href).href;
  node.title = node.href;
  node.rel = "noopener noreferrer";
  node.target = "_blank";
  return node;
}
