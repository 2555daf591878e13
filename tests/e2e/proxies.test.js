// The proxies that the README has recipes for, in front of real nodes: what they pass on, and what browsers notice when
// nodes are replaced behind them.
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";
import { closeBrowsers, fence, openBrowser, say } from "./lib/browsers.js";
import { freePort } from "./lib/ports.js";
import { RECIPES, startProxy } from "./lib/proxies.js";
import { startRedis } from "./lib/redis.js";
import { OUR_BINARY, startOurs } from "./lib/servers.js";
import { until } from "./lib/wait.js";

if (!OUR_BINARY) throw new Error("set LOOMIO_CHANNELS_BIN to the path of the binary to test");
const ADA = { name: "Ada", group_ids: [1, 2], id: 1 };
const TRANSPORTS = [["polling"], ["websocket"], ["polling", "websocket"]];

describe("behind a proxy", { timeout: 300_000 }, () => {
  let redis;
  let nodes;
  let proxy;

  beforeEach(async () => {
    redis = await startRedis();
    await redis.user("ada", ADA);
    nodes = [];
  });
  afterEach(async () => {
    closeBrowsers();
    await proxy?.stop();
    await Promise.all(nodes.map((node) => node.stop()));
    await redis?.stop();
  });

  const node = async (port) => startOurs(redis, { port, env: { CHANNELS_SECRET: "the same on every node" } });
  const open = async (transports) => {
    const browser = await openBrowser(proxy, { token: "ada", transports });
    await until("the session's offset has arrived", () => browser.count("session") === 1);
    return browser;
  };

  for (const recipe of RECIPES) {
    const alone = recipe === "nginx-proxy.conf";
    const count = alone ? 1 : 2;

    test(`${recipe}: polling, WebSocket and the upgrade pass`, async () => {
      nodes = await Promise.all(Array.from({ length: count }, () => node()));
      proxy = await startProxy(recipe, nodes.map(({ port }) => port));
      const browsers = [];
      for (const transports of TRANSPORTS) browsers.push(await open(transports));
      await say(redis, "group-1", "one");
      await say(redis, "user-1", "two");
      await fence(redis, ...browsers);
      for (const browser of browsers) assert.deepEqual(browser.texts(), ["one", "two"]);
      assert.deepEqual(browsers.map(({ socket }) => socket.io.engine.transport.name), ["polling", "websocket", "websocket"]);
      // Sessions stay with their node: none was closed.
      for (const browser of browsers) assert.equal(browser.count("disconnect"), 0);
    });

    test(`${recipe}: nodes are replaced one after the other`, async () => {
      nodes = await Promise.all(Array.from({ length: count }, () => node()));
      proxy = await startProxy(recipe, nodes.map(({ port }) => port));
      const browsers = [];
      for (const transports of TRANSPORTS) browsers.push(await open(transports));
      let sent = 0;
      let publishing = true;
      const publisher = (async () => {
        while (publishing) {
          await say(redis, "group-1", String(sent++));
          await new Promise((resolve) => setTimeout(resolve, 10));
        }
      })();
      for (let index = 0; index < count; index += 1) {
        await nodes[index].stop();
        nodes[index] = await node(nodes[index].port);
      }
      for (const browser of browsers) await browser.connected();
      publishing = false;
      await publisher;
      await fence(redis, ...browsers);
      const all = Array.from({ length: sent }, (_item, number) => String(number));
      // Without another node nobody hears what is published meanwhile, and browsers are told so.
      if (alone) return;
      for (const browser of browsers) {
        const seen = new Set();
        const first = browser.texts().filter((text) => !seen.has(text) && seen.add(text));
        const how = `${browser.socket.io.opts.transports}, recovered ${browser.socket.recovered}`;
        assert.deepEqual(first, all, `every update, in order (${how})`);
        assert.ok(browser.count("connect") > 1, "it had to come back");
        assert.ok(browser.socket.recovered, "and was told that it missed nothing");
      }
    });
  }
});
