// The same story told to the reference server and to ours must read the same, except where allowed-differences.js says
// otherwise. Without LOOMIO_CHANNELS_BIN the reference is compared with itself, which checks the story.
import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";
import { ADDED_HEADERS, IGNORED_EVENTS, STEP_DIFFERENCES, WIRE_DIFFERENCES } from "./allowed-differences.js";
import { CLIENTS, closeBrowsers } from "./lib/browsers.js";
import { startRedis } from "./lib/redis.js";
import { OUR_BINARY, startOurs, startReference } from "./lib/servers.js";
import { tell } from "./transcript.js";
import { tellWire } from "./wire-transcript.js";

const TRANSPORTS = [["polling"], ["websocket"], ["polling", "websocket"]];
const START = OUR_BINARY ? startOurs : startReference;

let stages;

before(async () => {
  stages = await Promise.all([startReference, START].map(async (start) => {
    const redis = await startRedis();
    return { redis, server: await start(redis) };
  }));
});

after(async () => {
  for (const { redis, server } of stages ?? []) {
    await server.stop();
    await redis.stop();
  }
});

afterEach(closeBrowsers);

for (const [version, io] of Object.entries(CLIENTS)) {
  for (const transports of TRANSPORTS) {
    test(`${version} over ${transports.join(" and ")} sees the same`, { timeout: 300_000 }, async () => {
      const [reference, ours] = await Promise.all(stages.map((stage) => tell({ ...stage, io, transports })));
      compare(reference, ours, STEP_DIFFERENCES);
    });
  }
}

test("the wire reads the same", { timeout: 300_000 }, async () => {
  const [reference, ours] = await Promise.all(stages.map((stage) => tellWire(stage)));
  compare(reference, ours, WIRE_DIFFERENCES);
});

function compare(reference, ours, differences) {
  const ignored = new Set(IGNORED_EVENTS.map(({ event }) => event));
  const title = ({ step }) => step;
  assert.deepEqual(ours.map(title), reference.map(title));
  const mismatches = [];
  for (const [index, { step, saw }] of reference.entries()) {
    const expected = without(saw, ignored);
    const actual = withoutAdded(without(ours[index].saw, ignored));
    const difference = OUR_BINARY && differences.find((candidate) => candidate.step === step);
    try {
      if (difference) {
        const strip = (value) => omit(value, difference.ignore);
        assert.deepEqual(strip(expected), strip({ ...expected, ...difference.reference }), "the reference");
        assert.deepEqual(strip(actual), strip({ ...expected, ...difference.ours }), "ours");
      } else {
        assert.deepEqual(actual, expected);
      }
    } catch (error) {
      mismatches.push(`── ${step}\n${error.message}`);
    }
  }
  assert.equal(mismatches.length, 0, `\n${mismatches.join("\n")}`);
}

const omit = (value, keys = []) => Object.fromEntries(Object.entries(value).filter(([key]) => !keys.includes(key)));

/** A copy of `value` without the events called as in `ignored`, wherever a list of events is found. */
function without(value, ignored) {
  if (Array.isArray(value)) {
    return value.filter((item) => !(Array.isArray(item) && ignored.has(item[0]))).map((item) => without(item, ignored));
  }
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, without(item, ignored)]));
  }
  return value;
}

/** A copy of `value` without the headers ours may add, wherever an answer is found. */
function withoutAdded(value) {
  if (Array.isArray(value)) return value.map(withoutAdded);
  if (!value || typeof value !== "object") return value;
  const copy = Object.fromEntries(Object.entries(value).map(([key, item]) => [key, withoutAdded(item)]));
  for (const { status, header, value: added } of ADDED_HEADERS) {
    if (copy.status === status && copy.headers?.[header] === added) delete copy.headers[header];
  }
  return copy;
}
