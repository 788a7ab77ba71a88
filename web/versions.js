// Versions of an answer: to regenerate it keeps the answer and the messages after it.
//
// An answer with versions has `versions`: {at, tails}. `tails` holds the messages of each version, from
// the answer on. That of version `at` is null: its messages are those of the conversation.

/** Remove an answer and the messages after it; return the `versions` of the answer to come. */
export function nextVersion(messages, answer) {
  const { at, tails } = answer.versions ?? { at: 0, tails: [null] };
  return { at: tails.length, tails: [...tails.with(at, cut(messages, answer)), null] };
}

/** Show version `to` of an answer, with the messages that followed it. */
export function showVersion(messages, answer, to) {
  const { at, tails } = answer.versions;
  if (to === at || !tails[to]) return;
  insert(messages, tails.with(at, cut(messages, answer)), to);
}

/** Remove an answer; show the version before it. */
export function removeVersion(messages, answer) {
  const { at, tails } = answer.versions;
  cut(messages, answer);
  insert(messages, tails.toSpliced(at, 1), Math.max(0, at - 1));
}

function cut(messages, answer) {
  delete answer.versions;
  return messages.splice(messages.indexOf(answer));
}

function insert(messages, tails, at) {
  const tail = tails[at];
  messages.push(...tail);
  if (tails.length > 1) tail[0].versions = { at, tails: tails.with(at, null) };
}
