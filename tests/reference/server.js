// What the Node channel server does for live updates, on the same official packages. The end-to-end tests compare our
// server with this one, and the benchmark measures against it, so it does no more than the original: it logs nothing
// while it works, joins rooms only after CONNECT has been answered, and does not survive what the original does not.
import { createServer } from "node:http";
import { createClient } from "redis";
import { Server } from "socket.io";
import { serveChannels } from "./channels.js";

const env = process.env;
const RECOVERY_WINDOW_MS = 30 * 60 * 1000;

const number = (name) => (env[name] ? { value: Number(env[name]) } : undefined);

const appHost = env.CANONICAL_HOST || (env.VIRTUAL_HOST ?? "").replace("channels.", "");
const origin = env.PUBLIC_APP_URL || `https://${appHost}`;

// Tests read the header to wait until the server has noticed that a client is gone.
const http = createServer((_request, response) => response.writeHead(404, { "x-sockets": io.sockets.sockets.size }).end());
const io = new Server(http, {
  cors: { origin, credentials: true },
  connectionStateRecovery: { maxDisconnectionDuration: RECOVERY_WINDOW_MS, skipMiddlewares: true },
  // Only for tests: production runs with the packages' own intervals.
  ...(number("PING_INTERVAL_MS") && { pingInterval: number("PING_INTERVAL_MS").value }),
  ...(number("PING_TIMEOUT_MS") && { pingTimeout: number("PING_TIMEOUT_MS").value }),
  ...(number("CONNECT_TIMEOUT_MS") && { connectTimeout: number("CONNECT_TIMEOUT_MS").value }),
});

const lookups = createClient({ url: env.REDIS_URL || "redis://localhost:6379/0" });
await serveChannels(io, lookups, lookups.duplicate());

http.listen(Number(env.PORT || 5000), () => console.log(`listening on ${http.address().port}`));
