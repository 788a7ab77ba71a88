// Conversations, stored in this browser only.
//
// A conversation is {id, created, changed, draft, messages} and {title} if it was renamed; a message is
// {role, content} and, for an answer, {model, seed, finish, error, usage}: see answer.js, and
// versions.js for {versions}. A `dropped` message is not sent to the model: see turns.js. `draft` and a
// message's `edit` are text that has not been sent. Drafts are stored separately: typing in one tab
// must not overwrite messages that another tab may be writing.

const PREFIX = "yocobit.conversation.";
const DRAFT_PREFIX = "yocobit.draft.";
const SAVE_EVERY_MS = 400;

export class Conversations {
  #kept = new Map(); // by id: stored, rejected by storage, or still empty
  #unsaved = new Set();
  #timer;
  #isLeft = false; // the page is being closed: do not store answers as stopped

  /** `onproblem` gets a message when storage is full; `onchange` the id that another tab wrote. */
  constructor({ onproblem, onchange }) {
    this.onproblem = onproblem;
    for (const id of storedIds()) this.#load(id);
    addEventListener("storage", ({ key }) => {
      if (!key?.startsWith(PREFIX)) return;
      const id = key.slice(PREFIX.length);
      if (this.#unsaved.has(id)) return;
      this.#kept.delete(id);
      this.#load(id);
      onchange(id);
    });
    addEventListener("visibilitychange", () => this.flush());
    addEventListener("pagehide", () => {
      this.flush();
      this.#isLeft = true;
    });
    addEventListener("pageshow", () => {
      this.#isLeft = false;
    });
  }

  /** Return the conversations that are not empty, the most recently changed first. */
  list() {
    const filled = [...this.#kept.values()].filter((conversation) => !isEmpty(conversation));
    return filled.sort((a, b) => b.changed - a.changed);
  }

  get(id) {
    return this.#kept.get(id);
  }

  /** Start a conversation; it is stored once it is not empty. */
  begin(messages = []) {
    const now = Date.now();
    const random = crypto.getRandomValues(new Uint32Array(1))[0];
    const id = `${now.toString(36)}-${random.toString(36)}`;
    const conversation = { id, created: now, changed: now, draft: "", messages };
    this.#kept.set(id, conversation);
    return conversation;
  }

  /** Store a conversation: within SAVE_EVERY_MS, or when the page is closed. */
  save(conversation) {
    this.#kept.set(conversation.id, conversation);
    this.#unsaved.add(conversation.id);
    this.#timer ??= setTimeout(() => this.flush(), SAVE_EVERY_MS);
  }

  /**
   * Store an imported conversation; false if it is there already. Another one with its id is kept:
   * the imported one then gets a new id.
   */
  add(imported) {
    const kept = this.#kept.get(imported.id);
    const text = ({ title, messages }) => JSON.stringify([title, messages], withSortedKeys);
    if (kept && !isEmpty(kept) && text(kept) === text(imported)) return false;
    const id = kept || !imported.id ? this.begin().id : imported.id;
    this.save({ ...imported, id });
    return true;
  }

  /** Store a draft at once. */
  saveDraft({ id, draft, messages }) {
    access(() => {
      if (draft) localStorage.setItem(DRAFT_PREFIX + id, draft);
      else localStorage.removeItem(DRAFT_PREFIX + id);
    });
    if (!messages.length) this.save(this.get(id));
  }

  remove(id) {
    this.#kept.delete(id);
    this.#unsaved.delete(id);
    access(() => localStorage.removeItem(PREFIX + id));
    access(() => localStorage.removeItem(DRAFT_PREFIX + id));
  }

  flush() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#isLeft) return;
    const failed = [...this.#unsaved].filter((id) => !this.#write(id));
    this.#unsaved.clear();
    if (failed.length) {
      this.onproblem("This browser's storage is full. Export this conversation, or delete others.");
    }
  }

  #write(id) {
    const conversation = this.#kept.get(id);
    if (isEmpty(conversation)) return access(() => localStorage.removeItem(PREFIX + id));
    const text = JSON.stringify({ ...conversation, draft: undefined });
    return access(() => localStorage.setItem(PREFIX + id, text));
  }

  #load(id) {
    access(() => {
      const conversation = JSON.parse(localStorage.getItem(PREFIX + id));
      if (!Array.isArray(conversation?.messages)) return;
      conversation.draft = localStorage.getItem(DRAFT_PREFIX + id) ?? "";
      this.#kept.set(id, conversation);
    });
  }
}

/** Return the user's title; by default, the first line of the first message or of the draft. */
export function titleOf(conversation) {
  const text = conversation.title ?? conversation.messages[0]?.content ?? conversation.draft;
  const line = text.trim().split("\n")[0].slice(0, 80);
  return line || "New conversation";
}

/** For JSON.stringify: equal objects give equal texts. */
function withSortedKeys(key, value) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return value;
  return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
}

function isEmpty(conversation) {
  return !conversation.messages.length && !conversation.draft;
}

function storedIds() {
  const ids = [];
  access(() => {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
    ids.push(...keys.map((key) => key.slice(PREFIX.length)));
  });
  return ids;
}

/** Access storage, which may be forbidden or full; return whether that succeeded. */
function access(action) {
  try {
    action();
    return true;
  } catch {
    return false;
  }
}
