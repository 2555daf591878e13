// The official clients, each as Loomio's front end uses it, with a diary of what the application would have seen.
import { io as io48 } from "socket.io-client";
import { io as io47 } from "socket.io-client-4.7";
import { soon, until } from "./wait.js";

/** Versions of the official client by name. */
export const CLIENTS = { "socket.io-client 4.8": io48, "socket.io-client 4.7": io47 };

const open = new Set();

/** Closes every client that a test left open, so that a failed test does not keep its process alive. */
export function closeBrowsers() {
  for (const socket of open) socket.disconnect();
  open.clear();
}

/**
 * Connects like Loomio does. `diary` collects `[event, ...arguments]`, with "connect" and "disconnect" among them.
 * Messages whose records hold `probe` are how tests find out that a room was joined; the diary leaves them out.
 */
export async function openBrowser(server, { io = io48, token, transports } = {}) {
  const socket = io(server.url, {
    query: token === undefined ? {} : { channel_token: token },
    ...(transports && { transports }),
    forceNew: true,
    reconnectionDelay: 100,
    reconnectionDelayMax: 100,
  });
  open.add(socket);
  const diary = [];
  const probes = new Set();
  socket.on("connect", () => diary.push(["connect"]));
  socket.on("disconnect", (reason) => diary.push(["disconnect", reason]));
  socket.on("connect_error", (error) => diary.push(["connect_error", error.message]));
  socket.onAny((event, ...args) => {
    const probe = args[0]?.records?.probe ?? args[0]?.probe;
    if (probe !== undefined) probes.add(probe);
    else diary.push([event, ...args]);
  });

  const browser = {
    socket,
    diary,
    probes,
    /** Number of entries called `event`. */
    count: (event) => diary.filter(([name]) => name === event).length,
    /** Everything the diary holds; empties it. */
    read: () => diary.splice(0),
    /** The texts of the records received so far, as `say` publishes them. */
    texts: () => diary.filter(([name]) => name === "records").map(([, data]) => data.records.text),
    /** Loses the transport, does `meanwhile`, and comes back as by itself. */
    async away(meanwhile) {
      const before = socket.id;
      socket.io.reconnection(false);
      await server.loses(() => socket.io.engine.close());
      await until("the client is away", () => !socket.connected);
      await meanwhile();
      const back = browser.reconnected();
      socket.io.reconnection(true);
      socket.io.open();
      await back;
      return { recovered: socket.recovered, sameId: socket.id === before };
    },
    /** Asks for a namespace that does not exist; once that is refused, the server has read all that was sent before. */
    refused: (namespace = "/elsewhere") =>
      soon("the refusal of a namespace", new Promise((resolve) => {
        const other = socket.io.socket(namespace);
        other.once("connect_error", ({ message, data = null }) => {
          other.disconnect();
          resolve({ message, data });
        });
      })),
    connected: () => until("the client is connected", () => socket.connected),
    /** Waits for the next "connect". */
    reconnected: () => soon("the client to come back", new Promise((resolve) => socket.once("connect", resolve))),
    close: () => socket.disconnect(),
  };
  await browser.connected();
  if (!transports || transports.length > 1) {
    await until("the client has upgraded", () => socket.io.engine.transport.name === "websocket");
  }
  return browser;
}

let probe = 0;

/** Publishes to `room` until `browser` is seen to be in it. A server may join rooms after it has answered CONNECT. */
export async function joined(redis, browser, room) {
  const mine = [];
  await until(`the client is in ${room}`, async () => {
    if (mine.some((number) => browser.probes.has(number))) return true;
    mine.push(++probe);
    await redis.records({ room, records: { probe } });
  });
}

/** Sends every browser a notice and waits for it: whatever was published before has then arrived, or never will. */
export async function fence(redis, ...browsers) {
  const number = ++probe;
  await redis.notice({ probe: number });
  await until(`notice ${number} has arrived everywhere`, () => browsers.every((browser) => browser.probes.has(number)));
}

/** Publishes one plain record. */
export const say = (redis, room, text) => redis.records({ room, records: { text } });
