// The messages of the current conversation, and its scroll position.

import { MessageView } from "./message.js";

const AT_END_PX = 8;

export class Transcript {
  #views = [];
  #isFollowing = true; // new tokens, until the user scrolls up
  #lastTop = 0;

  /** `scroller` scrolls `list`; `toEnd` is the button that scrolls to the end. */
  constructor({ scroller, list, toEnd }, actions) {
    this.scroller = scroller;
    this.list = list;
    this.toEnd = toEnd;
    this.actions = actions;
    scroller.addEventListener("scroll", () => this.#noticeScroll(), { passive: true });
    toEnd.addEventListener("click", () => this.follow());
    // A window or keyboard that changes its size must not hide new tokens.
    // Formulas change their heights once they are rendered.
    const observer = new ResizeObserver(() => this.#keepUp());
    observer.observe(scroller);
    observer.observe(list);
  }

  /** Render all messages, with a line below those that are not sent to the model. */
  show(messages, isText, answer) {
    this.list.setAttribute("aria-live", "off"); // existing messages are not announced
    this.#views = messages.map((message) => new MessageView(message, isText, this.actions));
    this.list.replaceChildren(...this.#views.map((view) => view.element));
    const lastDropped = messages.findLastIndex((message) => message.dropped);
    if (lastDropped >= 0) this.#views[lastDropped].element.after(this.#droppedLine());
    const last = this.#views.at(-1);
    for (const view of this.#views) view.update(this.#running(view, answer), view === last);
    this.follow();
  }

  /** Update the last message. */
  update(answer) {
    const view = this.#views.at(-1);
    this.list.setAttribute("aria-live", "polite");
    view?.update(this.#running(view, answer), true);
    this.#keepUp();
  }

  /** Scroll to a message, and mark it for a moment. */
  reveal(index) {
    const element = this.#views[index]?.element;
    this.#isFollowing = false;
    element?.scrollIntoView({ block: "center" });
    element?.classList.add("found");
  }

  /** Focus a button for the versions of a message: the rendered messages are new. */
  focusVersions(index) {
    const { element } = this.#views[index];
    element.scrollIntoView({ block: "nearest" });
    element.querySelector(".versions button:not(:disabled)").focus();
  }

  /** Edit the last question. */
  editLast() {
    this.#views.findLast((view) => view.isEditable)?.startEdit();
  }

  /** Scroll to the end, and stay there as tokens arrive. */
  follow() {
    this.#isFollowing = true;
    this.#keepUp();
  }

  #running(view, answer) {
    return answer?.message === view.message ? answer : undefined;
  }

  #droppedLine() {
    const { content } = document.getElementById("dropped");
    const line = content.firstElementChild.cloneNode(true);
    line.querySelector("button").addEventListener("click", () => this.actions.restore());
    return line;
  }

  #keepUp() {
    if (this.#isFollowing) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#noticeScroll();
  }

  #noticeScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const isAtEnd = scrollHeight - clientHeight - scrollTop < AT_END_PX;
    if (isAtEnd) this.#isFollowing = true;
    else if (scrollTop < this.#lastTop) this.#isFollowing = false;
    this.#lastTop = scrollTop;
    this.toEnd.hidden = isAtEnd || this.#isFollowing;
  }
}
