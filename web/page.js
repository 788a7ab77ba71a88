// The page: the current conversation, the user's actions on it, and the running answers.

import { Answer, countTokens } from "./answer.js";
import { ServerError } from "./chat.js";
import { Composer } from "./composer.js";
import { Conversations, download, titleOf } from "./conversation.js";
import { Header } from "./header.js";
import { Meter } from "./meter.js";
import { loadModels } from "./model.js";
import { Notice } from "./notice.js";
import { SettingsDialog } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Transcript } from "./transcript.js";
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
const composer = new Composer(find("composer"), { send, stop, draft });
const transcript = new Transcript(
  { scroller: find("scroller"), list: find("messages"), toEnd: find("to-end") },
  { again, edit, save: () => store.save(conversation), all: wholeText },
);
const sidebar = new Sidebar(
  { sidebar: find("sidebar"), menu: find("menu"), scrim: find("scrim"), rest: [find("main")] },
  { open: go, begin, save: () => download(store.list(), "yocobit-conversations") },
);

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

function go(id) {
  history.pushState(null, "", `#${id}`);
  open(id);
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

/** Regenerate the last answer. */
function again() {
  if (answers.has(conversation.id)) return;
  const { messages } = conversation;
  request(messages.at(-1).role === "assistant" ? messages.pop() : undefined);
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

/** Request the next answer of the current conversation, in place of `previous` if given. */
async function request(previous) {
  const target = conversation;
  const answer = new Answer(target.messages, settings.values);
  target.messages.push(answer.message);
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
  const at = target.messages.indexOf(answer.message);
  const keepsPrevious = previous?.content && !answer.message.content;
  if (keepsPrevious) target.messages[at] = { ...previous, error: answer.message.error };
  keep(target);
  if (target !== conversation) showList();
  else if (keepsPrevious) show();
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
  document.title = messages.length ? `${titleOf(conversation)} - yocobit` : "yocobit";
  document.body.classList.toggle("started", messages.length > 0);
  document.body.classList.toggle("for-text", isForText());
  welcome(find("welcome"), model);
  transcript.show(messages, isForText(), answers.get(conversation.id));
  showState();
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
