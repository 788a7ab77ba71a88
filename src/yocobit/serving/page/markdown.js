// Markdown to DOM nodes: the blocks of a text. What is inside a paragraph is in inline.js.
//
// The text is a model's and is not trusted: no node is made from HTML. It may be unfinished: a
// fence that is not closed yet goes on to the end.

import { codeBlock, setCode } from "./code.js";
import { inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,}) *([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: +(.*))?$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: (.*))?$/;
const INTERRUPTING_ITEM = /^ *(?:[-*+]|1[.)]) +\S/; // others are part of a paragraph: "in 1789."
const COLUMN = /^:?-+:?$/;
const MAX_DEPTH = 10; // of quotes and lists in each other; what is deeper is a paragraph

/** Make an element show a text. Blocks at its begin that it shows already stay as they are. */
export function renderMarkdown(element, text) {
  const shown = element.blocks ?? [];
  const blocks = split(text.replaceAll("\t", "    ").split(/\r?\n/), 0);
  blocks.forEach((block, i) => {
    const old = shown[i];
    if (old && isUpToDate(old, block)) {
      block.node = old.node;
    } else {
      block.node = block.kind.node(block.lines, 0);
      if (old) old.node.replaceWith(block.node);
      else element.append(block.node);
    }
  });
  shown.slice(blocks.length).forEach((block) => block.node.remove());
  element.blocks = blocks;
}

/** Whether a shown block is a new one, or code that could be made so without a new node. */
function isUpToDate(old, block) {
  if (old.kind !== block.kind) return false;
  if (old.lines.join("\n") === block.lines.join("\n")) return true;
  return block.kind === CODE && setCode(old.node, ...codeOf(block.lines));
}

/** Return the blocks of some lines, as {kind, lines}. */
function split(lines, depth) {
  const blocks = [];
  for (let i = 0; i < lines.length; ) {
    if (lines[i].trim()) {
      const kind = depth > MAX_DEPTH ? PARAGRAPH : KINDS.find((kind) => kind.begins(lines, i));
      const end = kind.end(lines, i);
      blocks.push({ kind, lines: lines.slice(i, end) });
      i = end;
    } else {
      i += 1;
    }
  }
  return blocks;
}

function nodesOf(lines, depth) {
  return split(lines, depth).map((block) => block.kind.node(block.lines, depth));
}

// Each kind of block says whether it begins at a line, behind which line it ends, and its node.

const CODE = {
  begins: (lines, i) => FENCE.test(lines[i]),
  end(lines, i) {
    const fence = FENCE.exec(lines[i])[1];
    for (let j = i + 1; j < lines.length; j += 1) if (isClosing(lines[j], fence)) return j + 1;
    return lines.length;
  },
  node: (lines) => codeBlock(...codeOf(lines)),
};

/** Return the text between fences, and its language. */
function codeOf(lines) {
  const [, fence, info] = FENCE.exec(lines[0]);
  const isClosed = lines.length > 1 && isClosing(lines.at(-1), fence);
  const text = lines.slice(1, isClosed ? -1 : lines.length).join("\n");
  return [text, info.trim().split(" ")[0]];
}

function isClosing(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text === fence[0].repeat(text.length);
}

const HEADLINE = {
  begins: (lines, i) => HEADING.test(lines[i]),
  end: (lines, i) => i + 1,
  node(lines) {
    const [, marks, text = ""] = HEADING.exec(lines[0]);
    // The page's own headings are the first two levels.
    const tag = `h${Math.min(6, marks.length + 2)}`;
    return element(tag, inline(text.trim().replace(/ #+$/, "")));
  },
};

const LINE = {
  begins: (lines, i) => RULE.test(lines[i]),
  end: (lines, i) => i + 1,
  node: () => element("hr"),
};

const QUOTATION = {
  begins: (lines, i) => QUOTE.test(lines[i]),
  end: (lines, i) => endOf(lines, i, (line) => QUOTE.test(line)),
  node: (lines, depth) =>
    element("blockquote", nodesOf(lines.map((line) => line.replace(/^ {0,3}> ?/, "")), depth + 1)),
};

const TABLE = {
  begins(lines, i) {
    const rule = lines[i + 1];
    if (!lines[i].includes("|") || !rule?.includes("-")) return false;
    const columns = cells(rule);
    return columns.length === cells(lines[i]).length && columns.every((c) => COLUMN.test(c));
  },
  end: (lines, i) => endOf(lines, i, (line) => line.includes("|")),
  node(lines) {
    const alignments = cells(lines[1]).map(alignment);
    const row = (line, tag) => {
      const texts = cells(line);
      return element("tr", alignments.map((align, i) => {
        const cell = element(tag, inline(texts[i] ?? ""));
        if (align) cell.className = align;
        return cell;
      }));
    };
    const head = element("thead", [row(lines[0], "th")]);
    const body = element("tbody", lines.slice(2).map((line) => row(line, "td")));
    const frame = element("div", [element("table", [head, body])]);
    frame.className = "table";
    frame.tabIndex = 0; // it scrolls
    return frame;
  },
};

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function alignment(rule) {
  if (!rule.endsWith(":")) return "";
  return rule.startsWith(":") ? "centred" : "right";
}

const LIST = {
  begins: (lines, i) => ITEM.test(lines[i]),
  end(lines, i) {
    const first = ITEM.exec(lines[i]);
    const belongs = (line) => indent(line) >= first[1].length + 2 || isSibling(line, first);
    for (let j = i + 1; j < lines.length; j += 1) {
      if (lines[j].trim()) {
        const goesOn = lines[j - 1].trim() && !beginsBlock(lines, j);
        if (!belongs(lines[j]) && !goesOn) return j;
      } else {
        const next = lines.slice(j, j + 3).find((line) => line.trim());
        if (!next || !belongs(next)) return j;
      }
    }
    return lines.length;
  },
  node(lines, depth) {
    const first = ITEM.exec(lines[0]);
    const isOrdered = /\d/.test(first[2]);
    const list = element(isOrdered ? "ol" : "ul");
    if (isOrdered) list.start = parseInt(first[2], 10);
    for (let i = 0; i < lines.length; ) {
      const end = endOf(lines, i, (line) => !isSibling(line, first));
      list.append(item(lines.slice(i, end), depth));
      i = end;
    }
    return list;
  },
};

/** Whether a line is an item of the list that began with another. */
function isSibling(line, first) {
  const found = ITEM.exec(line);
  if (!found || RULE.test(line) || found[1].length > first[1].length + 1) return false;
  return found[2].at(-1) === first[2].at(-1);
}

function item(lines, depth) {
  const [, before, marker, text = ""] = ITEM.exec(lines[0]);
  const width = before.length + marker.length + 1;
  const rest = lines.slice(1).map((line) => line.slice(Math.min(indent(line), width)));
  const nodes = nodesOf([text.trimStart(), ...rest], depth + 1);
  const isTight = nodes.filter((node) => node.tagName === "P").length < 2;
  if (isTight && nodes[0]?.tagName === "P") nodes.splice(0, 1, ...nodes[0].childNodes);
  return element("li", nodes);
}

function indent(line) {
  return line.length - line.trimStart().length;
}

const PARAGRAPH = {
  begins: () => true,
  end: (lines, i) => endOf(lines, i, (line, j) => line.trim() && !beginsBlock(lines, j)),
  node: (lines) => element("p", inline(lines.map((line) => line.trim()).join("\n"))),
};

/** Whether a line ends the paragraph before it. */
function beginsBlock(lines, i) {
  const kind = KINDS.find((kind) => kind.begins(lines, i));
  return kind === LIST ? INTERRUPTING_ITEM.test(lines[i]) : kind !== PARAGRAPH;
}

const KINDS = [CODE, HEADLINE, LINE, QUOTATION, TABLE, LIST, PARAGRAPH];

/** Return behind which line a run of lines ends that a test holds for; the first is in it. */
function endOf(lines, i, isInside) {
  let end = i + 1;
  while (end < lines.length && isInside(lines[end], end)) end += 1;
  return end;
}

function element(tag, children = []) {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
}
