// Export and import of conversations: a JSON file.

import { FileError } from "./files.js";

const FORMAT = "yocobit-conversations";
const VERSION = 1;

/** The types of a message's optional fields; others in a file are ignored. */
const FIELDS = {
  model: "string",
  seed: "number",
  finish: "string",
  error: "string",
  edit: "string",
  dropped: "boolean",
  isFull: "boolean",
  isContinuation: "boolean",
};

/** Download conversations as a file. */
export function download(conversations, name) {
  const link = document.createElement("a");
  const text = JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 2);
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `${name}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Return the conversations of an exported file; undefined for other text; FileError if invalid. */
export function readArchive(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (file?.format !== FORMAT) return undefined;
  if (file.version !== VERSION) {
    const given = String(file.version).slice(0, 20);
    throw new FileError(`version must be ${VERSION} but is ${given}`);
  }
  return list(file.conversations, "conversations").map(conversation);
}

function conversation(given, i) {
  const { id, created, changed, title } = given ?? {};
  const isId = typeof id === "string" && /^[\w-]{1,40}$/.test(id);
  return {
    id: isId ? id : undefined,
    created: Number.isFinite(created) ? created : Date.now(),
    changed: Number.isFinite(changed) ? changed : Date.now(),
    ...(typeof title === "string" && title.trim() && { title }),
    draft: "",
    messages: list(given?.messages, `conversations[${i}].messages`).map(message),
  };
}

function message(given) {
  const { role, content, usage, versions } = given ?? {};
  if ((role !== "user" && role !== "assistant") || typeof content !== "string") {
    throw new FileError("a message must have a text, and the role user or assistant");
  }
  const fields = Object.keys(FIELDS).filter((name) => typeof given[name] === FIELDS[name]);
  const result = { role, content };
  for (const name of fields) result[name] = given[name];
  if (usage && typeof usage === "object") {
    const isNumber = ([, value]) => Number.isFinite(value) || typeof value === "boolean";
    result.usage = Object.fromEntries(Object.entries(usage).filter(isNumber));
  }
  if (versions) result.versions = versionsOf(versions);
  return result;
}

function versionsOf({ at, tails }) {
  const read = list(tails, "versions").map((tail) => tail && list(tail, "versions").map(message));
  const isValid = read.every((tail, i) => (i === at ? tail === null : tail?.length));
  if (!isValid || !(at in read) || read.length < 2) {
    throw new FileError("versions must be the messages of each version, null for the shown one");
  }
  return { at, tails: read };
}

function list(value, name) {
  if (!Array.isArray(value)) throw new FileError(`${name} must be a list`);
  return value;
}
