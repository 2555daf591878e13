// The reference server as one node of several, each set up as the documentation of socket.io has it for that: packets and
// the sessions of those who left are in Redis, and SIGTERM closes connections before the process ends. What it does is
// what `../reference/server.js` does.
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-streams-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";
import { serveChannels } from "../reference/channels.js";

const RECOVERY_WINDOW_MS = 30 * 60 * 1000;

// The other node has read a message long before.
const CLAIM_MS = 60_000;

const redis = createClient({ url: process.env.REDIS_URL || "redis://localhost:6379/0" });
// What the adapter reads for those who return must not hold up anything else.
const lookups = redis.duplicate();
const subscriber = redis.duplicate();
const http = createServer((_request, response) => response.writeHead(404).end());
const io = new Server(http, {
  connectionStateRecovery: { maxDisconnectionDuration: RECOVERY_WINDOW_MS, skipMiddlewares: true },
});

// All nodes read what Rails publishes, and the adapter brings what one of them emits to the clients of all: the first to
// claim a message emits it.
const claims = async (text) =>
  lookups.set(`claim:${createHash("sha1").update(text).digest("base64")}`, "", { NX: true, PX: CLAIM_MS });
const claimed = {
  connect: () => subscriber.connect(),
  subscribe: (channel, take) =>
    subscriber.subscribe(channel, async (text) => {
      if (await claims(text)) take(text);
    }),
};

await redis.connect();
io.adapter(createAdapter(redis));
await serveChannels(io, lookups, claimed);

process.once("SIGTERM", async () => {
  await subscriber.unsubscribe();
  // What has been claimed is emitted once this is answered.
  await lookups.ping();
  // It does not end before the browsers have closed their connections, and writes all sessions at once.
  io.close();
  // Answered when all that was written before has been.
  await redis.quit();
  process.exit();
});

http.listen(Number(process.env.PORT || 5000), () => console.log(`listening on ${http.address().port}`));
