// Every payload in fixtures/ goes through our server: good ones arrive as they are, bad ones are dropped.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { after, afterEach, before, describe, test } from "node:test";
import { closeBrowsers, fence, openBrowser } from "./lib/browsers.js";
import { startRedis } from "./lib/redis.js";
import { OUR_BINARY, startOurs } from "./lib/servers.js";

if (!OUR_BINARY) throw new Error("set LOOMIO_CHANNELS_BIN to the path of the binary to test");
const root = new URL("../../fixtures/redis/", import.meta.url);
const files = (directory) =>
  readdirSync(new URL(`${directory}/`, root)).sort().map((name) => ({ name, bytes: readFileSync(new URL(`${directory}/${name}`, root)) }));

describe("our server and the fixtures", { timeout: 300_000 }, () => {
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

  test("what arrives is what JSON.parse finds a room in", async () => {
    const next = random(11);
    const pick = (choices) => choices[Math.floor(next() * choices.length)];
    await redis.user("reader", { group_ids: [11], id: 45 });
    const browser = await openBrowser(server, { token: "reader" });
    const expected = [];
    for (let number = 0; number < 2_000; number += 1) {
      const members = Array.from({ length: 1 + Math.floor(next() * 3) }, () => `${pick(KEYS)}${pick(COLONS)}${pick(VALUES)}`);
      const payload = `${pick(ENDS)}{"n":${number},${members.join(",")}}${pick(ENDS)}`;
      await redis.records(payload);
      const parsed = parse(payload);
      if (parsed?.room === "group-11") expected.push(parsed);
    }
    await fence(redis, browser);
    const arrived = browser.diary.filter(([name]) => name === "records").map(([, payload]) => payload);
    assert.ok(expected.length > 100, "enough of them are good");
    assert.deepEqual(arrived, expected);
    browser.close();
  });
});

// Mostly good, so that members which are odd in different ways meet.
const ROOM = ['"room"', '"room"', '"r\\u006fom"', '"\\u0072\\u006F\\u006f\\u006d"'];
const KEYS = [...ROOM, ...ROOM, '"\\ud800"', '"room\\udc00"', '"\\ud83c\\udf31"', '"__proto__"', '"x\\/"', '"\\x"', '"\\u12"', '"a\tb"', "room", "7"];
const COLONS = [":", ":", ":", " :\n", ": \t", ":", ":", ":", ":", ":", ":", ""];
const GROUP = ['"group-11"', '"group-11"', '"group-\\u0031\\u0031"'];
const VALUES = [...GROUP, ...GROUP, ...GROUP, "7", "null", '"\\ud800"', '"group-11\\ud800"', '["\\udfff",{"\\ud800":1e999}]', '{"room":"group-11"}', '"\\a"', "01", '"\u2028\u007f"', ""];
const ENDS = ["", "", "", "", " \t\r\n", "", "", "\u00a0", "\f", "", "", ""];

/** Numbers from 0 to 1, the same for the same seed (mulberry32). */
function random(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
