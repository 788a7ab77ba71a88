// The list of conversations: search in it, and renaming. On narrow screens it is a drawer over the page.

import { titleOf } from "./conversation.js";
import { search } from "./search.js";

export class Sidebar {
  #shown = [[], undefined, new Map()]; // as given to `show`
  #renamed; // the id of the conversation whose title is being edited

  /**
   * `rest` is covered by the drawer; `actions` are {open(id, message), begin(), save(), add(files),
   * rename(id, title), help()}.
   */
  constructor({ sidebar, menu, scrim, rest }, actions) {
    this.sidebar = sidebar;
    this.menu = menu;
    this.rest = rest;
    this.list = sidebar.querySelector("ul");
    this.query = sidebar.querySelector("[type=search]");
    this.actions = actions;
    const on = (name, action) => {
      sidebar.querySelector(name).addEventListener("click", action);
    };
    on(".begin", () => this.#leave(actions.begin));
    on(".export", () => actions.save());
    on(".help", () => this.#leave(actions.help));
    const files = sidebar.querySelector("[type=file]");
    on(".import", () => files.click());
    files.addEventListener("change", () => {
      actions.add([...files.files]);
      files.value = "";
    });
    menu.addEventListener("click", () => this.#toggle(!this.isOpen));
    scrim.addEventListener("click", () => this.#toggle(false));
    matchMedia("(max-width: 50rem)").addEventListener("change", () => this.#toggle(false));
    this.query.addEventListener("input", () => this.#render());
    this.query.addEventListener("keydown", (event) => this.#handleSearchKey(event));
    sidebar.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.isOpen) return;
      event.stopPropagation();
      this.#toggle(false);
      menu.focus();
    });
  }

  get isOpen() {
    return document.body.classList.contains("drawer");
  }

  /** Show conversations; those with an id in `running` have a running answer. */
  show(conversations, current, running) {
    this.#shown = [conversations, current, running];
    this.#render();
  }

  /** Focus the search. */
  search() {
    if (getComputedStyle(this.menu).display !== "none") this.#toggle(true);
    this.query.focus();
    this.query.select();
  }

  /** Edit a title, in its row. */
  rename(id) {
    if (getComputedStyle(this.menu).display !== "none") this.#toggle(true);
    this.query.value = "";
    this.#render();
    this.#renamed = id;
    const row = this.list.querySelector(`[data-id="${CSS.escape(id)}"]`)?.closest("li");
    if (!row) return this.#endRename();
    const input = document.createElement("input");
    input.setAttribute("aria-label", "Title");
    input.value = row.querySelector(".open").title;
    input.maxLength = 80;
    input.addEventListener("keydown", (event) => {
      if (event.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
      event.stopPropagation();
      this.#endRename(event.key === "Enter" ? input.value : undefined);
      this.list.querySelector(`[data-id="${CSS.escape(id)}"]`)?.focus();
    });
    input.addEventListener("blur", () => this.#endRename(input.value));
    row.replaceChildren(input);
    input.select();
  }

  #endRename(title) {
    const id = this.#renamed;
    this.#renamed = undefined;
    if (id !== undefined && title !== undefined) this.actions.rename(id, title.trim());
    this.#render();
  }

  #render() {
    if (this.#renamed !== undefined) return; // an input is in the list
    const [conversations] = this.#shown;
    const query = this.query.value.trim();
    const found = query
      ? search(conversations, query)
      : conversations.map((conversation) => ({ conversation }));
    const focused = document.activeElement?.dataset.id;
    this.list.replaceChildren(...found.map((each) => this.#row(each)));
    if (focused) this.list.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
    this.sidebar.querySelector(".export").hidden = conversations.length === 0;
    this.sidebar.querySelector(".search").hidden = conversations.length === 0;
    this.sidebar.querySelector(".none").hidden = !query || found.length > 0;
  }

  #row({ conversation, message, snippet }) {
    const [, current, running] = this.#shown;
    const row = document.getElementById("row").content.firstElementChild.cloneNode(true);
    const button = row.querySelector(".open");
    const title = titleOf(conversation);
    const isDraft = !conversation.messages.length;
    button.querySelector(".title").textContent = isDraft ? `Draft: ${title}` : title;
    button.title = title;
    button.dataset.id = conversation.id;
    button.classList.toggle("running", running.has(conversation.id));
    if (conversation === current) button.setAttribute("aria-current", "true");
    if (snippet) this.#showSnippet(button.querySelector(".snippet"), snippet);
    const { open } = this.actions;
    button.addEventListener("click", () => this.#leave(() => open(conversation.id, message)));
    const rename = row.querySelector(".rename");
    rename.setAttribute("aria-label", `Rename: ${title}`);
    rename.addEventListener("click", () => this.rename(conversation.id));
    return row;
  }

  #showSnippet(element, [before, match, after]) {
    const mark = document.createElement("mark");
    mark.textContent = match;
    element.append(before, mark, after);
  }

  #handleSearchKey(event) {
    if (event.isComposing) return;
    if (event.key === "Enter" || event.key === "ArrowDown") {
      event.preventDefault();
      const first = this.list.querySelector(".open");
      if (event.key === "Enter") first?.click();
      else first?.focus();
    } else if (event.key === "Escape" && this.query.value) {
      event.stopPropagation();
      this.query.value = "";
      this.#render();
    }
  }

  #toggle(isOpen) {
    document.body.classList.toggle("drawer", isOpen);
    this.menu.setAttribute("aria-expanded", isOpen);
    for (const element of this.rest) element.inert = isOpen;
    if (isOpen) this.sidebar.querySelector(".begin").focus();
  }

  #leave(action) {
    this.#toggle(false);
    action();
  }
}
