// Numbers for display: decimal units, few digits.

const whole = new Intl.NumberFormat("en");

export function count(n) {
  return whole.format(n);
}

/** Format a number to three digits in the largest fitting unit; each is 1000 of the previous. */
function scaled(n, units) {
  let unit = 0;
  while (unit < units.length - 1 && n >= 999.5) {
    n /= 1000;
    unit += 1;
  }
  const digits = n >= 99.95 || unit === 0 ? 0 : n >= 9.995 ? 1 : 2;
  return `${n.toFixed(digits)} ${units[unit]}`;
}

export function bytes(n) {
  return scaled(n, ["B", "kB", "MB", "GB", "TB"]);
}

export function parameters(n) {
  const text = scaled(n, ["", "thousand", "million", "billion", "trillion"]).trim();
  return text.replace(/\.?0+ /, " ");
}

export function seconds(s) {
  if (s < 0.9995) return `${Math.round(s * 1000)} ms`;
  if (s < 99.95) return `${s.toFixed(s < 9.995 ? 2 : 1)} s`;
  return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
}

export function speed(perSecond) {
  return perSecond < 9.95 ? perSecond.toFixed(1) : count(Math.round(perSecond));
}

/** Format the ratio of two numbers, such as "5.1". */
export function ratio(larger, smaller) {
  const times = larger / smaller;
  return times < 9.95 ? times.toFixed(1) : count(Math.round(times));
}
