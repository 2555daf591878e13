// Waiting for a condition instead of for a time: "until X, fail after T".

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Resolves with the first truthy result of `probe`; rejects with `what` after `within` milliseconds. */
export async function until(what, probe, within = 10_000, every = 10) {
  const deadline = Date.now() + within;
  for (;;) {
    const result = await probe();
    if (result) return result;
    if (Date.now() > deadline) throw new Error(`gave up after ${within} ms waiting until ${what}`);
    await pause(every);
  }
}

/** The promise's result, or an error naming `what` after `within` milliseconds. */
export function soon(what, promise, within = 10_000) {
  let timer;
  const limit = new Promise((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`gave up after ${within} ms waiting for ${what}`)), within);
  });
  return Promise.race([promise, limit]).finally(() => clearTimeout(timer));
}
