// Two nodes behind a balancer, one of which is told to end: its clients come back at the other by themselves.
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";
import { startBalancer } from "./lib/balancer.js";
import { CLIENTS, closeBrowsers, fence, joined, openBrowser, say } from "./lib/browsers.js";
import { startRedis } from "./lib/redis.js";
import { OUR_BINARY, startOurs } from "./lib/servers.js";
import { until } from "./lib/wait.js";

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
    test(`clients of a node that drains come back at the other and miss nothing: ${version}`, async () => {
      const open = () => openBrowser(balancer, { io, token: "ada", transports: ["websocket"] });
      const crowd = await Promise.all(Array.from({ length: BROWSERS }, open));
      for (const browser of crowd) await joined(redis, browser, "group-1");
      const [leaving] = nodes;
      const published = [];
      const publish = async () => {
        published.push(`update ${published.length}`);
        await say(redis, "group-1", published.at(-1));
      };
      await publish();
      leaving.signal("SIGTERM");
      while (leaving.running()) {
        await publish();
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      const { code, signal } = await leaving.exited;
      assert.deepEqual({ code, signal }, { code: 0, signal: null });
      await Promise.all(crowd.map((browser) => browser.connected()));
      await fence(redis, ...crowd);

      const moved = crowd.filter((browser) => browser.count("disconnect") > 0);
      assert.equal(moved.length, BROWSERS / 2, "the balancer shares them out evenly");
      for (const browser of moved) {
        const reasons = browser.diary.filter(([event]) => event === "disconnect").map(([, reason]) => reason);
        assert.deepEqual(reasons, ["transport close"]);
      }
      for (const browser of crowd) {
        // What is replayed may have come before.
        assert.deepEqual([...new Set(browser.texts())], published);
      }
    });
  }
});
