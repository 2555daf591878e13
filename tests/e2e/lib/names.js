// Stable names for what differs from run to run, so that transcripts can be compared: the first session id seen becomes
// "sid 1", and so on. Equal values keep equal names, which is what the comparison is about.

export function names() {
  const known = new Map();
  const counts = {};
  return (kind, value) => {
    if (typeof value !== "string") return value;
    const key = `${kind} ${value}`;
    if (!known.has(key)) known.set(key, `${kind} ${(counts[kind] = (counts[kind] ?? 0) + 1)}`);
    return known.get(key);
  };
}

/** An application event as `[name, payload text, "offset"]`: the text keeps the order of keys. */
export function eventNamed([event, ...args]) {
  if (["connect", "disconnect", "connect_error"].includes(event)) return [event, ...args].join(": ");
  const last = args.at(-1);
  const offset = typeof last === "string" && last.length > 0;
  const values = offset ? args.slice(0, -1) : args;
  return [event, ...values.map((value) => JSON.stringify(value)), ...(offset ? ["offset"] : [])];
}
