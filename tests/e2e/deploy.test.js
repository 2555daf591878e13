// Two nodes behind a balancer are replaced one after the other: their clients come back at the other by themselves.
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";
import { startBalancer } from "./lib/balancer.js";
import { CLIENTS, closeBrowsers, fence, joined, openBrowser, say } from "./lib/browsers.js";
import { startRedis } from "./lib/redis.js";
import { OUR_BINARY, startOurs } from "./lib/servers.js";

if (!OUR_BINARY) throw new Error("set LOOMIO_CHANNELS_BIN to the path of the binary to test");
const BROWSERS = 30;
const env = { CHANNELS_SECRET: "the same secret on both nodes", DRAIN_SECONDS: "2" };

describe("a deploy", { timeout: 300_000 }, () => {
  let redis;
  let nodes = [];
  let balancer;

  beforeEach(async () => {
    redis = await startRedis();
    await redis.user("ada", { name: "Ada", group_ids: [1], id: 1 });
    nodes = [await startOurs(redis, { env }), await startOurs(redis, { env })];
    balancer = await startBalancer(nodes);
  });
  afterEach(async () => {
    closeBrowsers();
    await balancer?.stop();
    for (const node of nodes) await node.stop();
    await redis?.stop();
  });

  for (const [version, io] of Object.entries(CLIENTS)) {
    test(`clients of nodes that are replaced come back at the first attempt and miss nothing: ${version}`, async () => {
      const open = () => openBrowser(balancer, { io, token: "ada", transports: ["websocket"] });
      const crowd = await Promise.all(Array.from({ length: BROWSERS }, open));
      for (const browser of crowd) await joined(redis, browser, "group-1");
      const published = [];
      const publish = async () => {
        published.push(`update ${published.length}`);
        await say(redis, "group-1", published.at(-1));
      };
      await publish();
      for (const [place, leaving] of [...nodes].entries()) {
        leaving.signal("SIGTERM");
        while (leaving.running()) {
          await publish();
          await new Promise((resolve) => setTimeout(resolve, 10));
        }
        const { code, signal } = await leaving.exited;
        assert.deepEqual({ code, signal }, { code: 0, signal: null });
        // All are at the other node, which is the only one.
        await fence(redis, ...crowd);
        nodes[place] = await startOurs(redis, { port: leaving.port, env });
      }

      const reasons = crowd.flatMap(({ diary }) => diary.filter(([event]) => event === "disconnect"));
      // The balancer shares them out evenly; all are at the second node when that is replaced.
      assert.deepEqual(reasons, Array(BROWSERS / 2 + BROWSERS).fill(["disconnect", "transport close"]));
      for (const browser of crowd) {
        assert.equal(browser.count("connect_error"), 0, "every return is the client's first attempt");
        assert.ok(browser.socket.recovered);
        // What is replayed may have come before.
        assert.deepEqual([...new Set(browser.texts())], published);
      }
    });
  }
});
