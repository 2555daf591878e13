// An Engine.IO server on the official package that sends every message back, with the intervals the public protocol
// suite expects. The Rust example `engine_echo` does the same on our transports.
import { createServer } from "node:http";
import { Server } from "engine.io";

const http = createServer((_request, response) => response.writeHead(404).end());
const engine = new Server({ pingInterval: 300, pingTimeout: 200, maxHttpBufferSize: 1_000_000 });

engine.attach(http, { path: "/engine.io/" });
engine.on("connection", (socket) => socket.on("message", (data) => socket.send(data)));

http.listen(Number(process.env.PORT || 3000), () => console.log(`listening on ${http.address().port}`));
