// A way out of a full context: the oldest turns stay on the page, but are not sent to the model.

/** Return the messages that are sent to the model. */
export function sentMessages(messages) {
  return messages.filter((message) => !message.dropped);
}

/** Whether there are turns before the last one to drop. */
export function canDrop(messages, isText) {
  return starts(sentMessages(messages), isText).length > 0;
}

/** Drop the older half of the messages that are sent: whole turns, at least one. */
export function dropOldest(messages, isText) {
  const sent = sentMessages(messages);
  const lengths = sent.map(({ content }) => content.length);
  const sum = (numbers) => numbers.reduce((total, n) => total + n, 0);
  const half = sum(lengths) / 2;
  const possible = starts(sent, isText);
  const start = possible.find((i) => sum(lengths.slice(0, i)) >= half) ?? possible.at(-1);
  for (const message of sent.slice(0, start)) message.dropped = true;
}

/** Send all messages again. */
export function restoreDropped(messages) {
  for (const message of messages) delete message.dropped;
}

/** Return where a turn starts, but the first: at a question; in a text, at each of its parts. */
function starts(messages, isText) {
  return [...messages.keys()].filter((i) => i > 0 && (isText || messages[i].role === "user"));
}
