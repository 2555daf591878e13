// The reference server once more, on Bun's own HTTP and WebSocket server. What it does is what `../reference/server.js`
// does; only the engine under socket.io differs.
import { Server as Engine } from "@socket.io/bun-engine";
import { createClient } from "redis";
import { Server } from "socket.io";
import { serveChannels } from "../reference/channels.js";

const RECOVERY_WINDOW_MS = 30 * 60 * 1000;
const PING_INTERVAL_MS = 25_000;

const io = new Server({
  connectionStateRecovery: { maxDisconnectionDuration: RECOVERY_WINDOW_MS, skipMiddlewares: true },
});
const engine = new Engine({ path: "/socket.io/", pingInterval: PING_INTERVAL_MS, pingTimeout: 20_000 });
io.bind(engine);

const lookups = createClient({ url: process.env.REDIS_URL || "redis://localhost:6379/0" });
await serveChannels(io, lookups, lookups.duplicate());

// The handler's own `idleTimeout` is longer than a ping interval, as the engine asks for.
const server = Bun.serve({ ...engine.handler(), port: Number(process.env.PORT || 5000), hostname: "127.0.0.1" });
console.log(`listening on ${server.port}`);
