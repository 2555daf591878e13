// The servers under test. Both are reached the same way: `{ name, url, port, stop, ... }`.
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { start } from "./children.js";
import { freePort } from "./ports.js";
import { until } from "./wait.js";

const here = dirname(fileURLToPath(import.meta.url));
const referenceDir = resolve(here, "../../reference");

/** The host Loomio itself runs on in every test; its origin is the one CORS admits. */
export const APP_HOST = "loomio.test";
export const APP_ORIGIN = `https://${APP_HOST}`;

/** Path of our binary, or undefined when only the reference can be tested. */
export const OUR_BINARY = process.env.LOOMIO_CHANNELS_BIN && resolve(process.env.LOOMIO_CHANNELS_BIN);

const OUR_ARGUMENTS = (process.env.LOOMIO_CHANNELS_ARGS ?? "serve").split(" ").filter(Boolean);

export async function startOurs(redis, { port, env = {} } = {}) {
  port ??= await freePort();
  const child = start(OUR_BINARY, OUR_ARGUMENTS, {
    env: { REDIS_URL: redis.url, PORT: String(port), CANONICAL_HOST: APP_HOST, RUST_LOG: "info", ...env },
  });
  const url = `http://127.0.0.1:${port}`;
  /** Waits until `/health/ready` has this status. */
  const becomes = (readiness) =>
    until(`${url}/health/ready answers ${readiness}`, async () => {
      child.assertRunning();
      return (await fetch(`${url}/health/ready`).catch(() => ({}))).status === readiness;
    });
  await becomes(200);
  /** Ends a connection by `cut`. One that comes back takes the place of the old one, so that there is nothing to wait for. */
  const loses = async (cut) => cut();
  return { name: "ours", url, port, becomes, loses, ...child };
}

export async function startReference(redis, { port = 0, env = {} } = {}) {
  const server = await startNode("server.js", "reference", {
    REDIS_URL: redis.url,
    PORT: String(port),
    CANONICAL_HOST: APP_HOST,
    ...env,
  });
  const sockets = async () => Number((await fetch(server.url)).headers.get("x-sockets"));
  return {
    ...server,
    /** Ends a connection by `cut` and waits until the server knows. One that comes back before loses its rooms. */
    async loses(cut) {
      const before = await sockets();
      await cut();
      await until("the reference has noticed the end of a connection", async () => (await sockets()) < before);
    },
  };
}

/** The official Engine.IO echo server. */
export const startReferenceEcho = () => startNode("engine-echo.js", "engine.io", { PORT: "0" });

/** Our Engine.IO echo server, whose path is in ENGINE_ECHO_BIN. */
export async function startOurEcho() {
  const port = await freePort();
  const child = start(resolve(process.env.ENGINE_ECHO_BIN), [], { env: { PORT: String(port) } });
  const url = `http://127.0.0.1:${port}`;
  await until(`${url} answers`, () => {
    child.assertRunning();
    return fetch(url).then(() => true, () => false);
  });
  return { name: "ours", url, port, ...child };
}

async function startNode(script, name, env) {
  const child = start(process.execPath, [script], { cwd: referenceDir, env });
  const [, port] = await child.printed(/^listening on (\d+)$/);
  return { name, url: `http://127.0.0.1:${port}`, port: Number(port), ...child };
}
