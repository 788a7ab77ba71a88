// Shared by all text inputs.

/** Fit an area's height to its text; the style sheet limits it. */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

/** Whether a key is Enter outside of IME composition, which Safari reports as key code 229. */
export function isEnter(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}
