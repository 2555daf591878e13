// The demo page in a real browser: what a newcomer sees first has to work, and shows recovery.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdirSync } from "node:fs";
import { createServer } from "node:http";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { chromium } from "playwright-core";
import { start } from "./lib/children.js";
import { freePort } from "./lib/ports.js";
import { OUR_BINARY } from "./lib/servers.js";
import { until } from "./lib/wait.js";

if (!OUR_BINARY) throw new Error("set LOOMIO_CHANNELS_BIN to the path of the binary to test");
const CHROMIUM = process.env.CHROMIUM_BIN ?? "/usr/bin/chromium";
const OUTPUT = fileURLToPath(new URL("../output/", import.meta.url));
const CARDS = ["ada", "grace", "visitor"];

describe("the demo page", { timeout: 120_000 }, () => {
  let demo;
  let browser;
  let page;
  const mistakes = [];

  before(async () => {
    mkdirSync(OUTPUT, { recursive: true });
    demo = start(OUR_BINARY, ["demo", "--port", String(await freePort())]);
    const [url] = await demo.printed(/http:\/\/[^\s"']+/);
    browser = await chromium.launch({
      executablePath: CHROMIUM,
      args: [
        ...["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"],
        ...["--disable-component-update", "--disable-sync"],
      ],
    });
    page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
    page.setDefaultTimeout(10_000);
    page.on("pageerror", (error) => mistakes.push(error.message));
    page.on("console", (message) => message.type() === "error" && mistakes.push(message.text()));
    const address = new URL("/demo", url.replace("0.0.0.0", "127.0.0.1").replace("[::]", "127.0.0.1"));
    await until("the page answers", () => fetch(address).then((answer) => answer.ok, () => false));
    await page.goto(address.href);
  });
  after(async () => {
    await browser?.close();
    await demo?.stop();
  });

  const card = (name) => page.getByTestId(`card-${name}`);
  const feed = (name) => card(name).getByTestId("feed");
  const items = (name, text) => feed(name).locator("[data-kind]").filter({ hasText: text });
  const state = (name) => card(name).getByTestId("state").getAttribute("data-state");
  const counts = (text) => Promise.all(CARDS.map((name) => items(name, text).count()));
  const connected = (name) => until(`${name} is connected`, async () => ["connected", "recovered"].includes(await state(name)));
  const publish = async (room, text) => {
    await page.getByTestId("room").selectOption(room);
    await page.getByTestId("text").fill(text);
    await page.getByTestId("publish").click();
  };
  const shot = async (name) => {
    await page.setViewportSize({ width: 1280, height: 900 });
    await page.screenshot({ path: `${OUTPUT}${name}-desktop.png`, fullPage: true });
    await page.setViewportSize({ width: 390, height: 844 });
    await page.screenshot({ path: `${OUTPUT}${name}-phone.png`, fullPage: true });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth);
    assert.equal(wide, false, "nothing sticks out on a phone");
    await page.setViewportSize({ width: 1280, height: 900 });
  };

  test("everyone connects", async () => {
    for (const name of CARDS) await connected(name);
    await shot("demo-start");
  });

  test("a record shows in the feeds of its group only", async () => {
    await publish("group-1", "for the first group");
    await items("ada", "for the first group").first().waitFor();
    await publish("group-2", "for the second group");
    for (const name of ["ada", "grace"]) await items(name, "for the second group").first().waitFor();
    assert.deepEqual(await counts("for the first group"), [1, 0, 0]);
    assert.deepEqual(await counts("for the second group"), [1, 1, 0]);
    const item = items("ada", "for the first group");
    assert.equal(await item.getAttribute("data-kind"), "records");
    assert.equal(await item.getAttribute("data-room"), "group-1");
    assert.notEqual(await item.getAttribute("data-recovered"), "true");
  });

  test("a notice shows in every feed", async () => {
    await page.getByTestId("text").fill("to everyone");
    await page.getByTestId("notice").click();
    for (const name of CARDS) await feed(name).locator('[data-kind="notice"]').first().waitFor();
  });

  test("what Ada misses while away is there when she returns", async () => {
    await card("ada").getByTestId("cut").click();
    await until("Ada is away", async () => (await state("ada")) === "cut");
    await publish("group-2", "while she was away");
    await items("grace", "while she was away").first().waitFor();
    assert.equal(await items("ada", "while she was away").count(), 0);
    await shot("demo-away");
    await card("ada").getByTestId("return").click();
    const item = items("ada", "while she was away");
    await item.first().waitFor();
    assert.equal(await item.count(), 1);
    assert.equal(await item.getAttribute("data-recovered"), "true");
    assert.notEqual(await items("grace", "while she was away").getAttribute("data-recovered"), "true");
    assert.equal(await state("ada"), "recovered");
    await shot("demo-recovered");
  });

  test("the command on the page publishes from a terminal", async () => {
    await page.getByTestId("room").selectOption("group-2");
    await page.getByTestId("text").fill("it's from a terminal");
    const command = await page.getByTestId("command").textContent();
    assert.match(command, /\| loomio-channels publish group-2 - --demo /);
    const { stdout } = await promisify(execFile)("sh", ["-c", command.replace("loomio-channels", `'${OUR_BINARY}'`)]);
    assert.equal(stdout, "received by 1 subscriber\n");
    await items("grace", "it's from a terminal").first().waitFor();
  });

  test("a page of another site cannot publish", async () => {
    const site = createServer((_, response) => response.setHeader("content-type", "text/html").end("<p>elsewhere"));
    await new Promise((listening) => site.listen(0, "127.0.0.1", listening));
    const elsewhere = await browser.newPage();
    try {
      await elsewhere.goto(`http://127.0.0.1:${site.address().port}/`);
      const target = new URL("/demo/publish/notice", page.url()).href;
      const body = JSON.stringify({ notice: "from another site" });
      for (const [mode, type] of [["cors", "application/json"], ["no-cors", "text/plain"]]) {
        const options = { method: "POST", mode, body, headers: { "content-type": type } };
        await elsewhere.evaluate(([url, options]) => fetch(url, options).catch(() => {}), [target, options]);
      }
    } finally {
      await elsewhere.close();
      site.close();
    }
    await publish("group-2", "after the other site");
    for (const name of ["ada", "grace"]) await items(name, "after the other site").first().waitFor();
    assert.deepEqual(await counts("from another site"), [0, 0, 0]);
  });

  test("the page has nothing to complain about", () => assert.deepEqual(mistakes, []));
});
