// Waiting for a condition instead of for a time: "until X, fail after T".

/** Far more than anything takes, since a machine may be busy with other things. */
const DEADLINE_MS = 60_000;

/** Resolves with the first truthy result of `probe`; rejects with `what` after `within` milliseconds. */
export async function until(what, probe, within = DEADLINE_MS, every = 10) {
  const deadline = Date.now() + within;
  for (;;) {
    const result = await probe();
    if (result) return result;
    if (Date.now() > deadline) throw new Error(`gave up after ${within} ms waiting until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, every));
  }
}

/** The promise's result, or an error naming `what` after `within` milliseconds. */
export function soon(what, promise, within = DEADLINE_MS) {
  let timer;
  const limit = new Promise((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`gave up after ${within} ms waiting for ${what}`)), within);
  });
  return Promise.race([promise, limit]).finally(() => clearTimeout(timer));
}
