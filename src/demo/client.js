// A small Socket.IO client: one namespace, WebSocket only, with connection state recovery.
//
// Answers for: the packets of Engine.IO 4 and Socket.IO 5, remembering where the connection stopped, and
// coming back. Must not know: what an event means, or that there is a page.

const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 8000;

export class Client {
  #token;
  #listener;
  #socket = null;
  #session = { pid: undefined, offset: undefined };
  #before = [];
  #announced = false;
  #wanted = false;
  #attempts = 0;
  #retry = 0;
  #deadline = 0;
  #patience = 45000;

  // The listener gets `connecting()`, `connected({ sid, recovered, resumed, missed })`, `lost()`, and
  // `event(name, payload, { recovered, offset })`.
  constructor(token, listener) {
    this.#token = token;
    this.#listener = listener;
  }

  connect() {
    if (this.#wanted) return;
    this.#wanted = true;
    this.#attempts = 0;
    this.#open();
  }

  // Drops the line as a failing network would: the server is not told goodbye, so the session can go on.
  cut() {
    this.#wanted = false;
    clearTimeout(this.#retry);
    this.#hangUp();
  }

  #open() {
    this.#listener.connecting();
    const address = new URL("/socket.io/", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    address.search = new URLSearchParams({ EIO: "4", transport: "websocket", channel_token: this.#token });
    const socket = new WebSocket(address);
    this.#socket = socket;
    this.#announced = false;
    this.#before = [];
    this.#expectSign();
    socket.onmessage = ({ data }) => {
      if (socket === this.#socket && typeof data === "string") this.#transport(data);
    };
    socket.onclose = () => {
      if (socket === this.#socket) this.#lost();
    };
  }

  #lost() {
    this.#hangUp();
    if (!this.#wanted) return;
    this.#listener.lost();
    const wait = Math.min(FIRST_RETRY_MS * 2 ** this.#attempts, LONGEST_RETRY_MS);
    this.#attempts += 1;
    this.#retry = setTimeout(() => this.#open(), wait * (0.75 + Math.random() / 2));
  }

  #hangUp() {
    const socket = this.#socket;
    this.#socket = null;
    clearTimeout(this.#deadline);
    socket?.close();
  }

  // The server pings; a connection on which it no longer does is dead even if nobody closed it.
  #expectSign() {
    clearTimeout(this.#deadline);
    this.#deadline = setTimeout(() => this.#lost(), this.#patience);
  }

  #transport(packet) {
    const rest = packet.slice(1);
    switch (packet[0]) {
      case "0": {
        const { pingInterval, pingTimeout } = read(rest) ?? {};
        if (pingInterval > 0 && pingTimeout > 0) this.#patience = pingInterval + pingTimeout;
        const { pid } = this.#session;
        this.#socket.send(pid ? `40${JSON.stringify(this.#session)}` : "40");
        break;
      }
      case "1":
        this.#lost();
        return;
      case "2":
        this.#socket.send(`3${rest}`);
        break;
      case "4":
        this.#message(rest);
        break;
    }
    if (this.#socket) this.#expectSign();
  }

  #message(packet) {
    switch (packet[0]) {
      case "0":
        this.#announce(read(packet.slice(1)) ?? {});
        break;
      case "1": // Told to leave. Not a failure of the line, but this page wants to stay.
      case "4":
        this.#lost();
        break;
      case "2": {
        // Digits before the list would ask for an acknowledgement, which nobody here waits for.
        const event = read(packet.slice(1).replace(/^\d+/, ""));
        if (!Array.isArray(event)) break;
        if (this.#announced) this.#deliver(event, false);
        else this.#before.push(event);
        break;
      }
    }
  }

  // What was missed arrives before the answer to CONNECT. Only that answer tells whether it continues the
  // session this client remembers, so everything waits for it.
  #announce({ sid, pid }) {
    const resumed = this.#session.pid !== undefined;
    const recovered = resumed && pid === this.#session.pid;
    this.#session.pid = pid;
    if (!recovered) this.#session.offset = undefined;
    this.#announced = true;
    this.#attempts = 0;
    const waiting = this.#before;
    this.#before = [];
    const missed = waiting.filter((event) => this.#deliver(event, recovered)).length;
    this.#listener.connected({ sid, recovered, resumed, missed });
  }

  // True when the event was for the listener and not only an offset to remember.
  #deliver(event, recovered) {
    const [name, payload] = event;
    const last = event.at(-1);
    if (event.length > 1 && typeof last === "string") this.#session.offset = last;
    const meant = name !== "session";
    this.#listener.event(meant ? name : null, payload, { recovered, offset: this.#session.offset });
    return meant;
  }
}

function read(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
