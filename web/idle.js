// Work that may wait, such as formulas and code colours: done in slices, so that input is not delayed.

const SLICE_MS = 8;

let tasks = [];

export function later(task) {
  if (tasks.push(task) === 1) setTimeout(run);
}

function run() {
  const end = performance.now() + SLICE_MS;
  let n = 0;
  while (n < tasks.length && performance.now() < end) tasks[n++]();
  tasks = tasks.slice(n);
  if (tasks.length) setTimeout(run);
}
