// What our server promises beyond the Node one: no update is lost, whatever drops, restarts or changes meanwhile.
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";
import { io as connect } from "socket.io-client";
import { CLIENTS, closeBrowsers, fence, joined, openBrowser, say } from "./lib/browsers.js";
import { startRedis } from "./lib/redis.js";
import { OUR_BINARY, startOurs } from "./lib/servers.js";
import { until } from "./lib/wait.js";

if (!OUR_BINARY) throw new Error("set LOOMIO_CHANNELS_BIN to the path of the binary to test");
const TRANSPORTS = [["polling"], ["websocket"], ["polling", "websocket"]];
const ADA = { name: "Ada", group_ids: [1, 2], id: 1 };

describe("our server", { timeout: 300_000 }, () => {
  let redis;
  let server;

  beforeEach(async () => {
    redis = await startRedis();
    await redis.user("ada", ADA);
    server = await startOurs(redis);
  });
  afterEach(async () => {
    closeBrowsers();
    await server?.stop();
    await redis?.stop();
  });

  const open = async (options = {}) => {
    const browser = await openBrowser(server, { token: "ada", ...options });
    // The one event a new session starts with. A client cut off before it arrives has no offset to come back with.
    await until("the session's offset has arrived", () => browser.count("session") === 1);
    return browser;
  };

  for (const [version, io] of Object.entries(CLIENTS)) {
    for (const transports of TRANSPORTS) {
      test(`a client that has received nothing recovers: ${version} over ${transports.join(" and ")}`, async () => {
        const browser = await open({ io, transports });
        const outcome = await browser.away(async () => {
          await say(redis, "group-1", "one");
          await say(redis, "user-1", "two");
          await say(redis, "group-9", "not hers");
        });
        await fence(redis, browser);
        assert.deepEqual(outcome, { recovered: true, sameId: true });
        assert.deepEqual(browser.texts(), ["one", "two"]);
      });
    }
  }

  test("a client recovers again and again", async () => {
    const browser = await open({ transports: ["websocket"] });
    const sent = [];
    for (let round = 1; round <= 5; round += 1) {
      const outcome = await browser.away(async () => {
        for (const half of ["a", "b"]) {
          sent.push(`${round}${half}`);
          await say(redis, "group-2", `${round}${half}`);
        }
      });
      assert.deepEqual(outcome, { recovered: true, sameId: true });
    }
    await fence(redis, browser);
    assert.deepEqual(browser.texts(), sent);
  });

  test("a visitor recovers missed notices", async () => {
    const browser = await open({ token: undefined });
    const outcome = await browser.away(() => redis.notice({ version: "1", notice: "missed", reload: false }));
    await fence(redis, browser);
    assert.deepEqual(outcome, { recovered: true, sameId: true });
    assert.equal(browser.count("notice"), 1);
  });

  test("a message published the moment a client connects is never lost", async () => {
    const lost = [];
    const once = (number) => new Promise((resolve) => {
      const text = `to connection ${number}`;
      const transports = TRANSPORTS[number % TRANSPORTS.length];
      const socket = connect(server.url, { query: { channel_token: "ada" }, transports, forceNew: true });
      const limit = setTimeout(() => done(false), 60_000);
      const done = (arrived) => {
        clearTimeout(limit);
        socket.disconnect();
        if (!arrived) lost.push(number);
        resolve();
      };
      socket.on("records", ({ records }) => records.text === text && done(true));
      socket.on("connect", () => say(redis, number % 2 ? "group-1" : "user-1", text));
    });
    for (let batch = 0; batch < 20; batch += 1) {
      await Promise.all(Array.from({ length: 10 }, (_item, index) => once(batch * 10 + index)));
    }
    assert.deepEqual(lost, []);
  });

  // ── Users that change meanwhile

  test("rooms follow the user's key at every return", async () => {
    const browser = await open();
    const outcome = await browser.away(async () => {
      await redis.user("ada", { ...ADA, group_ids: [2, 3] });
      await say(redis, "group-1", "she has left this group");
      await say(redis, "group-2", "she is still here");
    });
    await joined(redis, browser, "group-3");
    await say(redis, "group-1", "she has still left it");
    await say(redis, "group-3", "and joined this one");
    await fence(redis, browser);
    // Nothing is lost, but a ticket names the rooms of its session, so other rooms are another session.
    assert.deepEqual(outcome, { recovered: false, sameId: false });
    assert.deepEqual(browser.texts(), ["she is still here", "and joined this one"]);
  });

  test("a key that has vanished costs nobody their rooms", async () => {
    const browser = await open();
    const outcome = await browser.away(async () => {
      await redis.forget("ada");
      await say(redis, "group-1", "missed");
    });
    await say(redis, "group-2", "live");
    await say(redis, "user-1", "hers");
    await fence(redis, browser);
    assert.deepEqual(outcome, { recovered: true, sameId: true });
    assert.deepEqual(browser.texts(), ["missed", "live", "hers"]);
  });

  test("rooms follow the user's key while the client is connected", async () => {
    await server.stop();
    server = await startOurs(redis, { env: { REAUTH_SECONDS: "1" } });
    for (const io of Object.values(CLIENTS)) {
      for (const transports of TRANSPORTS) {
        await redis.user("ada", ADA);
        const browser = await open({ io, transports });
        const id = browser.socket.id;
        await say(redis, "group-3", "before she joined");
        await redis.user("ada", { ...ADA, group_ids: [2, 3] });
        await until("she is in the new group", () => browser.texts().includes("before she joined"));
        await say(redis, "group-1", "she has left this group");
        await say(redis, "group-2", "she is still here");
        await say(redis, "group-3", "and joined this one");
        await fence(redis, browser);
        assert.deepEqual(browser.texts(), ["before she joined", "she is still here", "and joined this one"]);
        assert.deepEqual([browser.count("disconnect"), browser.socket.id], [0, id]);
        browser.close();
      }
    }
  });

  // ── Redis

  test("a Redis that hangs delays messages and loses none", async () => {
    const browser = await open();
    redis.freeze();
    const published = [say(redis, "group-1", "one"), say(redis, "group-2", "two")];
    // The server does not wait for Redis.
    assert.equal((await fetch(`${server.url}/health/live`)).status, 200);
    redis.thaw();
    await Promise.all(published);
    await fence(redis, browser);
    assert.deepEqual(browser.texts(), ["one", "two"]);
    assert.equal(browser.count("disconnect"), 0);
  });

  test("a browser that connects while Redis hangs gets its rooms when Redis answers", async () => {
    redis.freeze();
    const browser = await open();
    redis.thaw();
    await joined(redis, browser, "group-2");
    await say(redis, "group-1", "arrives");
    await fence(redis, browser);
    assert.deepEqual(browser.texts(), ["arrives"]);
  });

  test("a Redis that is killed and started again disconnects nobody", async () => {
    const [ada, visitor] = [await open(), await open({ token: undefined })];
    await redis.down();
    await server.becomes(503);
    await redis.up();
    await Promise.all([joined(redis, ada, "group-1"), joined(redis, visitor, "notice")]);
    await say(redis, "group-2", "after the restart");
    await redis.notice({ reload: false });
    await fence(redis, ada, visitor);
    assert.deepEqual(ada.texts(), ["after the restart"]);
    const notices = visitor.diary.filter(([event]) => event === "notice").map(([, notice]) => notice);
    assert.equal(notices.filter(({ reload }) => reload === false).length, 1);
    // What was published before the server was subscribed again is told as a gap, at most once.
    assert.ok(notices.filter(({ reload }) => reload === true).length <= 1);
    assert.equal(ada.count("disconnect") + visitor.count("disconnect"), 0);
    assert.ok(server.running());
  });

  // ── Stopping

  for (const transports of TRANSPORTS) {
    test(`SIGTERM ends the process politely, clients return by themselves: ${transports.join(" and ")}`, async () => {
      const crowd = await Promise.all(Array.from({ length: 5 }, () => open({ transports })));
      const { code, signal } = await server.stop();
      assert.deepEqual({ code, signal }, { code: 0, signal: null });
      await until("everyone has noticed", () => crowd.every((browser) => browser.count("disconnect") === 1));
      // A client that polls may meet the closed port before the closing packet. Both reasons make it come back.
      const reasons = transports.includes("websocket") ? ["transport close"] : ["transport close", "transport error"];
      for (const browser of crowd) {
        const [, reason] = browser.diary.find(([event]) => event === "disconnect");
        assert.ok(reasons.includes(reason), `disconnected by ${reason}`);
      }
      server = await startOurs(redis, { port: server.port });
      await Promise.all(crowd.map((browser) => browser.connected()));
      await say(redis, "group-1", "welcome back");
      await fence(redis, ...crowd);
      for (const browser of crowd) assert.equal(browser.texts().at(-1), "welcome back");
    });
  }
});
