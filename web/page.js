// The page: the current conversation, the user's actions on it, and the running answers.

import { Answer, countTokens } from "./answer.js";
import { download, readArchive } from "./archive.js";
import { ServerError } from "./chat.js";
import { Composer } from "./composer.js";
import { Conversations, titleOf } from "./conversation.js";
import { FileError, quoted, readText } from "./files.js";
import { Header } from "./header.js";
import { Meter } from "./meter.js";
import { loadModels } from "./model.js";
import { Notice } from "./notice.js";
import { SettingsDialog } from "./settings.js";
import { Shortcuts } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";
import { Transcript } from "./transcript.js";
import { canDrop, dropOldest, restoreDropped } from "./turns.js";
import { nextVersion, removeVersion, showVersion } from "./versions.js";
import { welcome } from "./welcome.js";

const WAIT_SHOWN_EVERY_MS = 200;

const find = (id) => document.getElementById(id);

const answers = new Map(); // running, by the id of their conversation
let conversation; // the current one
let model; // undefined until the server has listed its models
let isDrawing = false;

const notice = new Notice(find("notice"), find("status"));
const store = new Conversations({ onproblem: (text) => notice.show(text), onchange: takeOver });
const settings = new SettingsDialog(find("settings"));
const meter = new Meter(find("meter"));
const header = new Header(find("header"), {
  choose,
  remove,
  save: () => download([conversation], `yocobit-${conversation.id}`),
  set: () => settings.open(),
});
const composer = new Composer(find("composer"), {
  send,
  stop,
  draft,
  add,
  editLast: () => transcript.editLast(),
});
const transcript = new Transcript(
  { scroller: find("scroller"), list: find("messages"), toEnd: find("to-end") },
  {
    again,
    retry,
    resume,
    version,
    drop,
    canDrop: () => canDrop(conversation.messages, isForText()),
    restore,
    edit,
    save: () => store.save(conversation),
    all: wholeText,
  },
);
const sidebar = new Sidebar(
  { sidebar: find("sidebar"), menu: find("menu"), scrim: find("scrim"), rest: [find("main")] },
  {
    open: go,
    begin,
    save: () => download(store.list(), "yocobit-conversations"),
    add,
    rename,
    help: () => shortcuts.open(),
  },
);
const shortcuts = new Shortcuts(find("help"), {
  write: () => composer.area.focus(),
  search: () => sidebar.search(),
  begin,
  rename: () => sidebar.rename(conversation.id),
});

addEventListener("popstate", () => open(location.hash.slice(1)));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop();
});
// Until the first token arrives, show the time since the request.
setInterval(() => answers.get(conversation.id)?.waiting && draw(), WAIT_SHOWN_EVERY_MS);

open(location.hash.slice(1));
greet();

/** Load the list of models; on failure, offer to try again. */
async function greet() {
  try {
    await connect();
  } catch (problem) {
    notice.keep(problem.message, "Try again", greet);
  }
}

async function connect() {
  header.offer(await loadModels());
  notice.hide();
}

function choose(chosen) {
  model = chosen;
  settings.describe(model);
  show();
}

// ---- conversations ----

/** Open a conversation, at a message if given. */
function go(id, message) {
  history.pushState(null, "", `#${id}`);
  open(id);
  if (message !== undefined) transcript.reveal(message);
}

function open(id) {
  conversation = store.get(id) ?? store.begin();
  if (conversation.id !== id) history.replaceState(null, "", `#${conversation.id}`);
  composer.text = conversation.draft;
  show();
  composer.focus();
}

function begin() {
  if (conversation.messages.length || conversation.draft) go(store.begin().id);
  else composer.focus();
}

function remove() {
  const removed = conversation;
  stop();
  store.remove(removed.id);
  go(store.begin().id);
  notice.show(`Deleted: ${titleOf(removed)}`, "Undo", () => {
    store.save(removed);
    store.saveDraft(removed);
    go(removed.id);
  });
}

function rename(id, title) {
  const renamed = store.get(id);
  if (!renamed) return; // another tab deleted it
  if (title) renamed.title = title;
  else delete renamed.title;
  store.save(renamed);
  showTitle();
  showList();
}

/** Import exported conversations; add other files to the message. */
async function add(files) {
  const target = conversation;
  for (const file of files) {
    try {
      const text = await readText(file);
      const conversations = readArchive(text);
      if (conversations) importAll(conversations);
      else if (target === conversation) composer.append(quoted(file.name, text));
    } catch (problem) {
      if (!(problem instanceof FileError)) throw problem;
      notice.show(`${file.name}: ${problem.message}`);
    }
  }
}

function importAll(conversations) {
  const added = conversations.filter((each) => store.add(each)).length;
  const known = conversations.length - added;
  notice.show(`Imported: ${added}${known ? `; ${known} are here already` : ""}`);
  showList();
}

/** Show a conversation as another tab stored it. If that tab deleted it, it stays open here. */
function takeOver(id) {
  if (id === conversation.id && store.get(id) && !answers.has(id)) {
    conversation = store.get(id);
    conversation.draft = composer.text;
    show();
  } else {
    showList();
  }
}

// ---- messages ----

function draft(text) {
  conversation.draft = text;
  store.saveDraft(conversation);
  if (!conversation.messages.length) showList();
}

function send(text) {
  draft("");
  say(text);
}

function say(text) {
  const content = isForText() ? text : text.trim();
  if (content.trim()) conversation.messages.push({ role: "user", content });
  request();
  composer.focus();
}

function stop() {
  answers.get(conversation.id)?.stop();
}

/** Regenerate the last answer; it is kept as a version, unless it is empty. */
function again() {
  if (answers.has(conversation.id)) return;
  const { messages } = conversation;
  const last = messages.at(-1);
  if (last.finish !== "failed") delete last.error; // of a version that was removed
  if (last.role !== "assistant") request();
  else if (last.content) request({ versions: nextVersion(messages, last) });
  else request({ versions: messages.pop().versions });
  composer.focus();
}

/** Continue the last answer. */
function resume() {
  if (answers.has(conversation.id)) return;
  request({ continued: conversation.messages.at(-1) });
  composer.focus();
}

/** Repeat the last request. */
function retry() {
  if (conversation.messages.at(-1).isContinuation) resume();
  else again();
}

/** Show version `to` of an answer. */
function version(answer, to) {
  if (answers.has(conversation.id)) return;
  const { messages } = conversation;
  const at = messages.indexOf(answer);
  showVersion(messages, answer, to);
  keep(conversation);
  show();
  transcript.focusVersions(at);
}

/** Drop the oldest turns, which makes room in the context for the last request or its answer. */
function drop() {
  if (answers.has(conversation.id)) return;
  const { messages } = conversation;
  dropOldest(messages, isForText());
  if (messages.at(-1).error === undefined) resume();
  else retry();
}

function restore() {
  restoreDropped(conversation.messages);
  keep(conversation);
  show();
  composer.focus();
}

/** Replace a message; the messages after it are kept in the original conversation. */
function edit(message, text) {
  const { messages } = conversation;
  const before = isForText() ? [] : messages.slice(0, messages.indexOf(message));
  stop();
  if (!isForText() && messages.findLast(({ role }) => role === "user") === message) {
    answers.delete(conversation.id);
    conversation.messages = before;
  } else {
    conversation = store.begin(structuredClone(before));
    history.pushState(null, "", `#${conversation.id}`);
    notice.show("Continued in a copy; the original conversation is in the list.");
  }
  composer.text = conversation.draft;
  say(text);
}

// ---- answers ----

/**
 * Request the next answer of the current conversation, as the last of `versions` if given, or more of
 * `continued`, its last answer.
 */
async function request({ versions, continued } = {}) {
  const target = conversation;
  const answer = new Answer(target.messages, settings.values, continued);
  if (versions) answer.message.versions = versions;
  if (!continued) target.messages.push(answer.message);
  answers.set(target.id, answer);
  keep(target);
  show();
  notice.say("Waiting for the answer");
  await answer.run(findModel, () => {
    keep(target);
    draw();
  });
  if (answers.get(target.id) !== answer) return; // another request replaced it
  answers.delete(target.id);
  const isRemoved = versions !== undefined && !answer.message.content;
  if (isRemoved) {
    const { error, isFull } = answer.message;
    const at = target.messages.indexOf(answer.message);
    removeVersion(target.messages, answer.message);
    Object.assign(target.messages[at], { error, isFull, isContinuation: false });
  }
  keep(target);
  if (target !== conversation) showList();
  else if (isRemoved) show();
  else showEnd();
}

async function findModel() {
  if (!model) await connect();
  if (!model) throw new ServerError("The server has no model.");
  return model;
}

/** Store a conversation, unless it was deleted meanwhile. */
function keep(target) {
  if (store.get(target.id) !== target) return;
  target.changed = Date.now();
  store.save(target);
}

function wholeText() {
  return conversation.messages.map(({ content }) => content).join("");
}

function isForText() {
  return model?.isForChat === false;
}

// ---- rendering ----

function show() {
  const { messages } = conversation;
  showTitle();
  document.body.classList.toggle("started", messages.length > 0);
  document.body.classList.toggle("for-text", isForText());
  welcome(find("welcome"), model, send);
  transcript.show(messages, isForText(), answers.get(conversation.id));
  showState();
}

function showTitle() {
  const isEmpty = !conversation.messages.length;
  document.title = isEmpty ? "yocobit" : `${titleOf(conversation)} - yocobit`;
}

/** Show that the answer is complete. */
function showEnd() {
  const { finish } = conversation.messages.at(-1);
  if (finish !== "failed") notice.say(finish === "stopped" ? "Stopped" : "The answer is complete");
  transcript.update();
  showState();
}

function showState() {
  const hasText = conversation.messages.length > 0;
  const isRunning = answers.has(conversation.id);
  composer.state = { isRunning, isForText: isForText(), hasText };
  header.canSave = hasText;
  showList();
  showMeter();
}

function showList() {
  sidebar.show(store.list(), conversation, answers);
}

function showMeter() {
  const { messages } = conversation;
  const usage = messages.at(-1)?.usage;
  const waiting = answers.get(conversation.id)?.waiting;
  meter.show(model, { ...countTokens(messages), usage, waiting });
}

/** Show new tokens, at most once per frame. */
function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    transcript.update(answers.get(conversation.id));
    showMeter();
  });
}
