// Every payload in fixtures/ goes through our server: good ones arrive as they are, bad ones harm nobody.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { after, afterEach, before, describe, test } from "node:test";
import { closeBrowsers, fence, joined, openBrowser } from "./lib/browsers.js";
import { startRedis } from "./lib/redis.js";
import { OUR_BINARY, startOurs } from "./lib/servers.js";

if (!OUR_BINARY) throw new Error("set LOOMIO_CHANNELS_BIN to the path of the binary to test");
const root = new URL("../../fixtures/redis/", import.meta.url);
const files = (directory) =>
  readdirSync(new URL(`${directory}/`, root)).sort().map((name) => ({ name, bytes: readFileSync(new URL(`${directory}/${name}`, root)) }));

describe("our server and the fixtures", { timeout: 120_000 }, () => {
  let redis;
  let server;
  before(async () => {
    redis = await startRedis();
    server = await startOurs(redis);
  });
  afterEach(closeBrowsers);
  after(async () => {
    await server?.stop();
    await redis?.stop();
  });

  test("records and notices arrive as they were published", async () => {
    const records = files("records");
    const notices = files("notices");
    const rooms = records.map(({ bytes }) => JSON.parse(bytes).room);
    const numbers = (kind) => rooms.filter((room) => room.startsWith(kind)).map((room) => Number(room.slice(kind.length)));
    await redis.user("reader", { name: "Reader", group_ids: [...new Set(numbers("group-"))], id: numbers("user-")[0] });
    const browser = await openBrowser(server, { token: "reader" });
    for (const { bytes } of records) await redis.records(bytes);
    for (const { bytes } of notices) await redis.notice(bytes);
    await fence(redis, browser);
    const arrived = (event) => browser.diary.filter(([name]) => name === event).map(([, payload]) => payload);
    assert.deepEqual(arrived("records"), records.map(({ bytes }) => JSON.parse(bytes)));
    assert.deepEqual(arrived("notice"), notices.map(({ bytes }) => JSON.parse(bytes)));
    browser.close();
  });

  test("bad payloads are dropped on every channel, and the next good one arrives", async () => {
    const browser = await openBrowser(server);
    for (const { bytes } of files("bad")) await redis.records(bytes);
    await fence(redis, browser);
    assert.equal(browser.count("records"), 0);
    for (const { bytes } of files("bad")) await redis.notice(bytes);
    await fence(redis, browser);
    assert.equal(browser.count("disconnect"), 0);
    assert.ok(server.running());
    browser.close();
  });

  for (const { name, bytes } of files("users")) {
    test(`a user stored as in ${name} can connect`, async () => {
      const token = `fixture-${name}`;
      await redis.user(token, bytes);
      const browser = await openBrowser(server, { token });
      await joined(redis, browser, "notice");
      const rooms = readableRooms(bytes);
      for (const room of rooms) await joined(redis, browser, room);
      assert.equal(browser.count("disconnect"), 0);
      browser.close();
    });
  }
});

/** The rooms that can be read out of a stored user, however little of it makes sense. */
function readableRooms(bytes) {
  let user;
  try {
    user = JSON.parse(bytes);
  } catch {
    return [];
  }
  const plain = (id) => (typeof id === "number" && Number.isSafeInteger(id)) || (typeof id === "string" && /^\d+$/.test(id));
  const groups = Array.isArray(user?.group_ids) ? user.group_ids : [];
  return [...(plain(user?.id) ? [`user-${user.id}`] : []), ...groups.filter(plain).map((id) => `group-${id}`)];
}
