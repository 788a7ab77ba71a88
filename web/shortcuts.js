// Keyboard shortcuts, and the dialog that lists them.

/** Listed in the help; those with an `action` are handled here, where the focus is in no dialog. */
const SHORTCUTS = [
  { keys: "Enter", text: "Send the message" },
  { keys: "Shift Enter", text: "Insert a line break" },
  { keys: "Esc", text: "Stop the answer" },
  { keys: "↑", text: "In an empty message: edit the last question" },
  { keys: "/", text: "Write a message", action: "write" },
  { keys: "Ctrl K", text: "Search conversations", action: "search" },
  { keys: "Ctrl Shift O", text: "New conversation", action: "begin" },
  { keys: "F2", text: "Rename the conversation", action: "rename" },
  { keys: "?", text: "Keyboard shortcuts", action: "help" },
];
const isApple = /Mac|iP/.test(navigator.platform);

/** `actions` are {write(), search(), begin(), rename()}. */
export class Shortcuts {
  constructor(dialog, actions) {
    this.dialog = dialog;
    this.actions = { ...actions, help: () => this.open() };
    dialog.querySelector("dl").replaceChildren(...SHORTCUTS.map(row));
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // the backdrop
    });
    addEventListener("keydown", (event) => this.#handle(event));
  }

  open() {
    this.dialog.showModal();
  }

  #handle(event) {
    if (event.isComposing || document.querySelector("dialog[open]")) return;
    const shortcut = SHORTCUTS.find(({ keys, action }) => action && isPressed(keys, event));
    if (!shortcut) return;
    event.preventDefault();
    this.actions[shortcut.action]();
  }
}

/** Whether an event is of keys such as "Ctrl K"; ⌘ is Ctrl. A character alone is text in an input. */
function isPressed(keys, event) {
  const parts = keys.split(" ");
  const key = parts.pop();
  const hasControl = parts.includes("Ctrl");
  if ((event.ctrlKey || event.metaKey) !== hasControl || event.altKey) return false;
  if (key.length > 1) return event.key === key && !event.shiftKey;
  if (!hasControl) return event.key === key && !event.target.closest("input, textarea, select");
  return event.key.toUpperCase() === key && event.shiftKey === parts.includes("Shift");
}

function row({ keys, text }) {
  const group = document.createElement("div");
  const term = document.createElement("dt");
  const description = document.createElement("dd");
  for (const key of keys.split(" ")) {
    const node = document.createElement("kbd");
    node.textContent = isApple && key === "Ctrl" ? "⌘" : key;
    term.append(node);
  }
  description.textContent = text;
  group.append(term, description);
  return group;
}
