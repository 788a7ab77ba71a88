// Colours of code. highlight.js finds the parts; it and each language are loaded when they are needed.

import { later } from "./idle.js";

const MAX_CHARACTERS = 50_000; // of a block

// The file of a language, by the names that fences give it.
const FILES = {};
for (const [file, names] of Object.entries({
  bash: "bash sh shell zsh console",
  c: "c h",
  cpp: "cpp c++ cc cxx hpp",
  csharp: "csharp cs c#",
  css: "css",
  diff: "diff patch",
  go: "go golang",
  ini: "ini toml cfg conf",
  java: "java",
  javascript: "javascript js jsx mjs",
  json: "json jsonc json5",
  python: "python py python3",
  ruby: "ruby rb",
  rust: "rust rs",
  sql: "sql",
  typescript: "typescript ts tsx",
  xml: "xml html svg xhtml",
  yaml: "yaml yml",
})) {
  for (const name of names.split(" ")) FILES[name] = file;
}

const loaded = new Map(); // promises of highlight.js, by language

/** Colour the text of an element, if its language is known. */
export async function highlight(element, name) {
  const language = Object.hasOwn(FILES, name.toLowerCase()) && FILES[name.toLowerCase()];
  const text = element.textContent;
  if (!language || text.length > MAX_CHARACTERS) return;
  const library = await load(language);
  later(() => {
    if (!library || !element.isConnected || element.textContent !== text) return;
    const { _emitter: emitter } = library.highlight(text, { language, ignoreIllegals: true });
    element.replaceChildren(...emitter.rootNode.children.map(nodeOf));
  });
}

/** Return highlight.js with a language; undefined if it cannot be loaded. */
function load(language) {
  if (!loaded.has(language)) {
    const library = import("./highlight/core.min.js"); // https://highlightjs.org, 11.12.0
    const grammar = import(`./highlight/languages/${language}.min.js`);
    const promise = Promise.all([library, grammar]).then(
      ([{ default: library }, { default: grammar }]) => {
        library.registerLanguage(language, grammar);
        return library;
      },
      () => {
        loaded.delete(language); // the next block tries again
      },
    );
    loaded.set(language, promise);
  }
  return loaded.get(language);
}

/** Return the node of a part: a text, or {scope, children}. Its HTML would not be trusted. */
function nodeOf(part) {
  if (typeof part === "string") return document.createTextNode(part);
  const node = document.createElement("span");
  if (part.scope) node.className = `hl-${part.scope.split(/[.:]/)[0]}`;
  node.append(...part.children.map(nodeOf));
  return node;
}
