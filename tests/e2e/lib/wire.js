// HTTP and WebSocket without a client library's opinions: what is on the wire, and nothing tidied up.
import { request } from "node:http";
import { WebSocket } from "ws";
import { soon, until } from "./wait.js";

const SEPARATOR = "\x1e";

/** One HTTP exchange on a connection of its own. The body is a Buffer. `sent` is called once the request has left. */
export function http(server, path, { method = "GET", headers = {}, body, signal, sent = () => {} } = {}) {
  return new Promise((resolve, reject) => {
    const outgoing = request(server.url + path, { method, headers, signal, agent: false }, (answer) => {
      const chunks = [];
      answer.on("data", (chunk) => chunks.push(chunk));
      answer.on("error", reject);
      answer.on("end", () => resolve({ status: answer.statusCode, headers: answer.headers, body: Buffer.concat(chunks) }));
    });
    outgoing.on("error", reject);
    outgoing.on("finish", sent);
    outgoing.end(body);
  });
}

/** A polling session driven by hand. `path` is the server's prefix, `query` what the first request adds. */
export async function openPolling(server, { path = "/socket.io/", query = "", headers = {} } = {}) {
  const base = `${path}?EIO=4&transport=polling`;
  const opening = await http(server, base + query, { headers });
  const open = opening.body.toString();
  if (opening.status !== 200) throw new Error(`the server answered ${opening.status} ${open}`);
  const { sid } = JSON.parse(open.slice(1));
  const url = `${base}&sid=${sid}`;
  const session = {
    sid,
    open,
    opening,
    url,
    get: (options) => http(server, url, { headers, ...options }),
    post: (body, options) => http(server, url, { headers, method: "POST", body, ...options }),
    /**
     * A poll that is on its way, as `{ answer }`. The server has it before what is asked next, or almost always: what
     * overtakes it must be told from what does not.
     */
    async begin(options) {
      let answer;
      await new Promise((sent) => (answer = session.get({ sent, ...options })));
      await http(server, "/");
      return { answer };
    },
    /** One poll as packets. */
    async poll() {
      const { status, body } = await session.get();
      if (status !== 200) throw new Error(`a poll was answered with ${status} ${body}`);
      return split(body);
    },
    /** Polls until `wanted` says that the packets so far are enough. */
    async collect(wanted) {
      const packets = [];
      while (!wanted(packets)) packets.push(...(await soon("a poll", session.poll())));
      return packets;
    },
  };
  return session;
}

export const split = (body) => body.toString().split(SEPARATOR);
export const join = (...packets) => packets.join(SEPARATOR);

/** A WebSocket that keeps what it received; `refused` instead of a socket when the handshake fails. */
export async function openSocket(server, query, { path = "/socket.io/", headers = {} } = {}) {
  const socket = new WebSocket(`${server.url.replace("http", "ws")}${path}?${query}`, { headers, perMessageDeflate: true });
  const received = [];
  let closed;
  const ended = new Promise((resolve) => socket.on("close", (code) => resolve((closed = { code }))));
  socket.on("message", (data, binary) => received.push(binary ? data : data.toString()));
  socket.on("error", () => {});
  const refused = await soon("the handshake", new Promise((resolve) => {
    socket.on("open", () => resolve());
    socket.on("unexpected-response", (_request, answer) => {
      const chunks = [];
      answer.on("data", (chunk) => chunks.push(chunk));
      answer.on("error", () => {});
      answer.on("close", () => resolve({ status: answer.statusCode, headers: answer.headers, body: Buffer.concat(chunks) }));
    });
    ended.then(() => resolve({ status: 0, headers: {}, body: Buffer.alloc(0) }));
  }));
  return {
    refused,
    extensions: socket.extensions,
    received,
    send: (data) => socket.send(data),
    close: () => socket.close(),
    /** Drops the TCP connection without a word. */
    terminate: () => socket.terminate(),
    isClosed: () => Boolean(closed ?? refused),
    ended: () => soon("the WebSocket to close", refused ?? ended),
    /** Takes packets out of `received` up to and including the first that `matches`. */
    async take(matches) {
      const wanted = typeof matches === "function" ? matches : (packet) => packet === matches;
      await until("the packet has arrived", () => received.some(wanted));
      return received.splice(0, received.findIndex(wanted) + 1);
    },
  };
}
