// What is the same wherever text is written.

/** Make an area as high as its text; the style says how high at most. */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

/** Whether a key was Enter, and not a part of a character: Safari says that with 229 only. */
export function isEnter(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}
