// A private redis-server with its own directory and port, and Rails' way of writing to it.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createClient } from "redis";
import { start } from "./children.js";
import { freePort } from "./ports.js";

/** Starts redis-server and connects to it. */
export async function startRedis() {
  const directory = await mkdtemp(join(tmpdir(), "channels-redis-"));
  const port = await freePort();
  const url = `redis://127.0.0.1:${port}/0`;
  let server;
  let client;

  async function up() {
    server = start("redis-server", [
      ...["--port", String(port), "--bind", "127.0.0.1", "--dir", directory],
      ...["--save", "", "--appendonly", "no"],
    ]);
    await server.printed(/Ready to accept connections/);
    client = createClient({ url, socket: { reconnectStrategy: false } });
    client.on("error", () => {}); // a stopped server is part of some tests
    await client.connect();
  }

  async function down() {
    await client.disconnect().catch(() => {});
    await server.stop("SIGKILL");
  }

  await up();
  return {
    url,
    /** What Rails does for live records. `payload` is an object, or the exact text or bytes to publish. */
    records: (payload) => client.publish("/records", text(payload)),
    notice: (payload) => client.publish("/system_notice", text(payload)),
    user: (token, user) => client.set(`/current_users/${token}`, text(user)),
    forget: (token) => client.del(`/current_users/${token}`),
    freeze: () => server.signal("SIGSTOP"),
    thaw: () => server.signal("SIGCONT"),
    /** Kills the server, with everything in it. */
    down,
    /** Starts it again on the same port, empty. */
    up,
    async stop() {
      await down();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

const text = (value) => (typeof value === "string" || Buffer.isBuffer(value) ? value : JSON.stringify(value));
