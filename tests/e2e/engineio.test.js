// Engine.IO 4 as its specification describes it, against two echo servers: the official package, which shows that the
// expectations are right, and ours (ENGINE_ECHO_BIN). Both use /engine.io/, 300 ms between pings and 200 ms to answer.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { startOurEcho, startReferenceEcho } from "./lib/servers.js";
import { soon, until } from "./lib/wait.js";
import * as wire from "./lib/wire.js";

const PATH = "/engine.io/";
const PING_INTERVAL = 300;
const PING_TIMEOUT = 200;
const LIMIT = 1_000_000;
const WEBSOCKET = "EIO=4&transport=websocket";

if (!process.env.ENGINE_ECHO_BIN) throw new Error("set ENGINE_ECHO_BIN to the path of the example to test");
describe("the official engine.io", () => behaviours(startReferenceEcho));
describe("our engine_echo", () => behaviours(startOurEcho));

function behaviours(start) {
  let server;
  before(async () => (server = await start()));
  after(() => server?.stop());

  const get = (query, options) => wire.http(server, `${PATH}?${query}`, options);
  const polling = () => wire.openPolling(server, { path: PATH });
  const websocket = async (query = WEBSOCKET) => wire.openSocket(server, query, { path: PATH });
  const opened = async () => {
    const socket = await websocket();
    const [open] = await socket.take((packet) => packet.startsWith("0"));
    return Object.assign(socket, { open });
  };
  /** A poll that skips heartbeats, which come in between whenever a test is slow. */
  const pollMessage = async (session) => {
    for (;;) {
      const packets = await soon("a poll", session.poll());
      if (packets.includes("2")) await session.post("3");
      const rest = packets.filter((packet) => packet !== "2");
      if (rest.length) return rest;
    }
  };
  const assertUnknown = async (session) => {
    const answer = await session.get();
    assert.equal(answer.status, 400);
    assert.deepEqual(JSON.parse(answer.body), { code: 1, message: "Session ID unknown" });
  };
  /** A session that has ended refuses a POST; one that lives takes it as the answer to a ping. */
  const ended = (session) => until("the session has ended", async () => (await session.post("3")).status === 400);
  const assertOver = async (session) => {
    const answer = await session.get().catch(() => ({ status: 400, body: "" }));
    if (answer.status === 200) assert.deepEqual(wire.split(answer.body), ["1"]);
    await assertUnknown(session);
  };

  describe("handshake", () => {
    const announced = (packet, upgrades) => {
      assert.equal(packet[0], "0");
      const { sid, ...rest } = JSON.parse(packet.slice(1));
      assert.equal(typeof sid, "string");
      assert.ok(sid.length >= 16, "a session id cannot be guessed");
      assert.deepEqual(rest, { upgrades, pingInterval: PING_INTERVAL, pingTimeout: PING_TIMEOUT, maxPayload: LIMIT });
    };
    test("over polling offers the upgrade", async () => announced((await polling()).open, ["websocket"]));
    test("over WebSocket offers none", async () => {
      const socket = await opened();
      announced(socket.open, []);
      socket.close();
      await socket.ended();
    });
    test("every session has its own id", async () => {
      const ids = await Promise.all(Array.from({ length: 50 }, async () => (await polling()).sid));
      assert.equal(new Set(ids).size, 50);
    });
  });

  describe("errors", () => {
    const cases = [
      ["EIO=4", "GET", 0, "Transport unknown"],
      ["EIO=4&transport=pigeon", "GET", 0, "Transport unknown"],
      ["EIO=4&transport=polling&sid=unknown", "GET", 1, "Session ID unknown"],
      ["EIO=4&transport=polling&sid=unknown", "POST", 1, "Session ID unknown"],
      ["EIO=4&transport=polling", "POST", 2, "Bad handshake method"],
      ["EIO=4&transport=polling", "PUT", 2, "Bad handshake method"],
      ["EIO=4&transport=websocket", "GET", 3, "Bad request"],
      ["transport=polling", "GET", 5, "Unsupported protocol version"],
      ["EIO=3&transport=polling", "GET", 5, "Unsupported protocol version"],
      ["EIO=abc&transport=polling", "GET", 5, "Unsupported protocol version"],
    ];
    for (const [query, method, code, message] of cases) {
      test(`${method} ?${query} is refused with code ${code}`, async () => {
        const answer = await get(query, { method });
        assert.equal(answer.status, 400);
        assert.match(answer.headers["content-type"], /^application\/json/);
        assert.deepEqual(JSON.parse(answer.body), { code, message });
      });
    }
    for (const query of ["transport=websocket", "EIO=abc&transport=websocket", "EIO=4", "EIO=4&transport=pigeon", `${WEBSOCKET}&sid=unknown`]) {
      test(`a WebSocket with ?${query} does not last`, async () => {
        const socket = await websocket(query);
        await socket.ended();
        assert.deepEqual(socket.received, []);
      });
    }
  });

  describe("messages over polling", () => {
    for (const [title, packets] of [
      ["one text packet", ["4hello"]],
      ["several text packets", ["4test1", "4test2", "4test3"]],
      ["text and binary packets", ["4hello", "bAQIDBA=="]],
      ["text that is not ASCII", ["4é € 😀"]],
      ["an empty message", ["4"]],
    ]) {
      test(`${title} come back`, async () => {
        const session = await polling();
        const answer = await session.post(wire.join(...packets));
        assert.equal(answer.status, 200);
        assert.equal(answer.body.toString(), "ok");
        assert.deepEqual(await pollMessage(session), packets);
      });
    }
    test("a waiting poll is answered by the next message", async () => {
      const session = await polling();
      const poll = pollMessage(session);
      await session.post("4late");
      assert.deepEqual(await poll, ["4late"]);
    });
    test("messages keep their order over many posts", async () => {
      const session = await polling();
      const sent = Array.from({ length: 50 }, (_item, number) => `4number ${number}`);
      for (const packet of sent) await session.post(packet);
      const received = [];
      while (received.length < sent.length) received.push(...(await pollMessage(session)));
      assert.deepEqual(received, sent);
    });
    test("a malformed packet ends the session", async () => {
      const session = await polling();
      await session.post("abc").catch(() => {});
      await assertOver(session);
    });
    test("a second poll at a time ends the session", async () => {
      const session = await polling();
      const answers = await Promise.all([session.get(), session.get()]);
      const [first, second] = answers.sort((one, other) => one.status - other.status);
      assert.deepEqual([first.status, first.body.toString()], [200, "1"]);
      assert.ok([400, 500].includes(second.status));
      await assertUnknown(session);
    });
    test("an aborted poll ends the session", async () => {
      const session = await polling();
      const abort = new AbortController();
      const { answer } = await session.begin({ signal: abort.signal });
      abort.abort();
      await assert.rejects(answer);
      await ended(session);
    });
    test("a body above the limit is refused", async () => {
      const session = await polling();
      const answer = await session.post(`4${"x".repeat(LIMIT)}`).catch(() => ({ status: 413 }));
      assert.equal(answer.status, 413);
    });
    test("a body just below the limit is taken", async () => {
      const session = await polling();
      const message = `4${"x".repeat(LIMIT - 1)}`;
      assert.equal((await session.post(message)).status, 200);
      assert.deepEqual(await pollMessage(session), [message]);
    });
  });

  describe("messages over WebSocket", () => {
    test("text and binary come back", async () => {
      const socket = await opened();
      socket.send("4hello");
      assert.deepEqual((await socket.take("4hello")).at(-1), "4hello");
      const bytes = Buffer.from([1, 2, 3, 4]);
      socket.send(bytes);
      assert.deepEqual((await socket.take((packet) => Buffer.isBuffer(packet))).at(-1), bytes);
      socket.close();
    });
    test("a message near the limit comes back", async () => {
      const socket = await opened();
      const message = `4${"é".repeat(400_000)}`;
      socket.send(message);
      await socket.take(message);
      socket.close();
    });
    for (const [title, packet] of [["a malformed packet", "abc"], ["a frame above the limit", `4${"x".repeat(LIMIT)}`]]) {
      test(`${title} ends the session`, async () => {
        const socket = await opened();
        socket.send(packet);
        await socket.ended();
        assert.ok(!socket.received.includes("2"), "not merely by the ping timeout");
      });
    }
    test("a client that vanishes is let go", async () => {
      const socket = await opened();
      socket.terminate();
      await socket.ended();
    });
  });

  describe("heartbeat", () => {
    test("polling: pings come at their interval while they are answered", async () => {
      const started = Date.now();
      const session = await polling();
      for (let round = 1; round <= 3; round += 1) {
        assert.deepEqual(await session.poll(), ["2"]);
        assert.ok(Date.now() - started >= round * PING_INTERVAL - 5, "not early");
        assert.equal((await session.post("3")).status, 200);
      }
    });
    test("polling: an unanswered ping ends the session", async () => {
      const started = Date.now();
      const session = await polling();
      assert.deepEqual(await session.poll(), ["2"]);
      await session.get();
      await assertUnknown(session);
      assert.ok(Date.now() - started >= PING_INTERVAL + PING_TIMEOUT - 5, "not before the time is up");
    });
    test("WebSocket: pings come at their interval while they are answered", async () => {
      const socket = await opened();
      for (let round = 0; round < 4; round += 1) {
        await socket.take("2");
        socket.send("3");
      }
      assert.equal(socket.isClosed(), false);
      socket.close();
    });
    test("WebSocket: an unanswered ping ends the session", async () => {
      const started = Date.now();
      const socket = await opened();
      await socket.ended();
      assert.ok(Date.now() - started >= PING_INTERVAL + PING_TIMEOUT - 5, "not before the time is up");
    });
  });

  describe("close", () => {
    test("polling: the browser ends the session, a waiting poll is released", async () => {
      await until("the poll was not overtaken", async () => {
        const session = await polling();
        const { answer } = await session.begin();
        await session.post("1");
        const { status, body } = await answer;
        await assertUnknown(session);
        if (status === 200) assert.equal(body.toString(), "6");
        return status === 200;
      });
    });
    test("WebSocket: the browser ends the session", async () => {
      const socket = await opened();
      socket.send("1");
      await socket.ended();
    });
  });

  describe("upgrade", () => {
    const probe = async (session) => {
      const socket = await websocket(`${WEBSOCKET}&sid=${session.sid}`);
      socket.send("2probe");
      assert.deepEqual(await socket.take("3probe"), ["3probe"]);
      return socket;
    };
    const move = async (socket) => {
      socket.send("5");
      socket.send("4hello");
      await socket.take("4hello");
    };
    test("moves the session to the WebSocket", async () => {
      const session = await polling();
      const socket = await probe(session);
      assert.deepEqual(await pollMessage(session), ["6"]);
      await move(socket);
      socket.close();
    });
    test("releases a poll that was already waiting", async () => {
      const session = await polling();
      const poll = pollMessage(session);
      const socket = await probe(session);
      assert.deepEqual(await poll, ["6"]);
      await move(socket);
      socket.close();
    });
    test("loses nothing that was sent before it", async () => {
      const session = await polling();
      await session.post(wire.join("4one", "4two"));
      const socket = await probe(session);
      const early = (await session.poll()).filter((packet) => packet.startsWith("4"));
      socket.send("5");
      socket.send("4three");
      const late = (await socket.take("4three")).filter((packet) => packet.startsWith("4"));
      assert.deepEqual([...early, ...late], ["4one", "4two", "4three"]);
      socket.close();
    });
    test("afterwards HTTP requests are refused and harm nothing", async () => {
      const session = await polling();
      const socket = await probe(session);
      await move(socket);
      assert.equal((await session.get()).status, 400);
      socket.send("4hello");
      await socket.take("4hello");
      socket.close();
    });
    test("afterwards another WebSocket is turned away and harms nothing", async () => {
      const session = await polling();
      const socket = await probe(session);
      await move(socket);
      const second = await websocket(`${WEBSOCKET}&sid=${session.sid}`);
      await second.ended();
      socket.send("4hello");
      await socket.take("4hello");
      socket.close();
    });
    test("a probe that is dropped leaves the polling session alive", async () => {
      const session = await polling();
      const socket = await probe(session);
      socket.terminate();
      await session.post("4still here");
      const packets = [];
      await until("the message has come back", async () => {
        packets.push(...(await pollMessage(session)));
        return packets.includes("4still here");
      });
    });
    test("pings go on after it", async () => {
      const session = await polling();
      const socket = await probe(session);
      socket.send("5");
      for (let round = 0; round < 2; round += 1) {
        await socket.take("2");
        socket.send("3");
      }
      socket.close();
    });
  });
}
