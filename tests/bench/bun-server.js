// The reference server once more, on Bun's own HTTP and WebSocket server. What it does is what `../reference/server.js`
// does; only the engine under socket.io differs.
import { Server as Engine } from "@socket.io/bun-engine";
import { createClient } from "redis";
import { Server } from "socket.io";

const RECOVERY_WINDOW_MS = 30 * 60 * 1000;
const PING_INTERVAL_MS = 25_000;

const io = new Server({
  connectionStateRecovery: { maxDisconnectionDuration: RECOVERY_WINDOW_MS, skipMiddlewares: true },
});
const engine = new Engine({ path: "/socket.io/", pingInterval: PING_INTERVAL_MS, pingTimeout: 20_000 });
io.bind(engine);

const lookups = createClient({ url: process.env.REDIS_URL || "redis://localhost:6379/0" });
const subscriber = lookups.duplicate();

io.on("connection", async (socket) => {
  socket.join("notice");
  const answer = await lookups.get(`/current_users/${socket.handshake.query.channel_token}`);
  if (!answer) return;
  const user = JSON.parse(answer);
  socket.join([`user-${user.id}`, ...user.group_ids.map((id) => `group-${id}`)]);
});

await Promise.all([lookups.connect(), subscriber.connect()]);
await subscriber.subscribe("/records", (text) => {
  const data = JSON.parse(text);
  io.to(data.room).emit("records", data);
});
await subscriber.subscribe("/system_notice", (text) => {
  io.emit("notice", JSON.parse(text));
});

// The handler's own `idleTimeout` is longer than a ping interval, as the engine asks for.
const server = Bun.serve({ ...engine.handler(), port: Number(process.env.PORT || 5000), hostname: "127.0.0.1" });
console.log(`listening on ${server.port}`);
