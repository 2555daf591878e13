// One story, told to any server by any official client over any transports. Returns what the applications behind the
// clients saw, step by step, with everything volatile replaced by names.
import { fence, joined, openBrowser, say } from "./lib/browsers.js";
import { eventNamed, names } from "./lib/names.js";
import { until } from "./lib/wait.js";

/** Valid JSON that careless handling would change. Compared as the client's JSON.parse leaves it. */
const ODD_PAYLOADS = [
  `{"records":{"b":1,"a":2,"10":3,"2":4},"room":"group-1"}`,
  `{"room":"group-1","records":{"float":1.0,"exponent":1e2,"small":1.5e-7,"negative":-0.0,"big":12345678901234567890}}`,
  `{"room":"group-1","records":{"escapes":"\\u00e9\\u20ac\\ud83d\\ude00 \\/ \\" \\\\ \\n \\u0000","raw":"é€😀 \u2028\u2029\u007f"}}`,
  `{"room":"group-1","records":{"":{"":[]},"__proto__":{"x":1},"constructor":null,"é":[[],{},""]}}`,
  ` { "room" : "group-1" ,\t"records" : { "spaces" : [ 1 , 2 ] } }\n`,
  `{"room":"group-1","records":{"_placeholder":true,"num":0,"type":"Buffer","data":[1,2,3]}}`,
  `{"records":{"lone":"\\ud800","separator":"\\u001e"},"room":"group-1","extra":{"kept":true},"event":"records"}`,
  `{"room":"group-\\u0031","records":{"room":"escaped"}}`,
  `{"room":"group-1"}`,
  `{"room":"group-1","records":null}`,
  `{"room":"group-1","records":"only text"}`,
  `{"room":"group-1","records":${"[".repeat(100)}${"]".repeat(100)}}`,
];

export async function tell({ server, redis, io, transports }) {
  const story = [];
  const name = names();
  const step = (title, saw) => story.push({ step: title, saw });
  const read = (browser) => browser.read().map(eventNamed);
  const open = (token) => openBrowser(server, { io, token, transports });
  const id = (browser) => name("sid", browser.socket.id);

  await redis.user("token-ada", { name: "Ada", group_ids: [1, 2], id: 1 });
  await redis.user("token-bob", `{"id":"9","group_ids":[7,"8"],"name":"Bób"}`);
  await redis.user("tök en/?with=odd&chars+%41#~", { name: "Cy", group_ids: [], id: 3 });

  const ada = await open("token-ada");
  const tab = await open("token-ada");
  const bob = await open("token-bob");
  const cy = await open("tök en/?with=odd&chars+%41#~");
  const stranger = await open("token-nobody");
  const visitor = await open(undefined);
  const everyone = [ada, tab, bob, cy, stranger, visitor];
  await Promise.all([
    joined(redis, ada, "group-2"),
    joined(redis, tab, "group-2"),
    joined(redis, bob, "group-8"),
    joined(redis, cy, "user-3"),
    ...everyone.map((browser) => joined(redis, browser, "notice")),
  ]);
  step("everyone connects", everyone.map((browser) => ({
    id: id(browser),
    idIsEngineId: browser.socket.id === browser.socket.io.engine.id,
    recovered: browser.socket.recovered,
    transport: browser.socket.io.engine.transport.name,
    saw: read(browser),
  })));

  for (const room of ["group-1", "group-2", "user-1", "group-3", "user-2", "user-9", "group-7", "user-3", "notice", "", "user-"]) {
    await say(redis, room, `to ${room}`);
  }
  await redis.records({ records: { text: "to no room" } });
  await redis.notice({ version: "2.26.1", notice: null, reload: false });
  await redis.notice(`{"reload":true,"notice":"Bis später 👋","version":"3.0.0"}`);
  await fence(redis, ...everyone);
  step("records go to their rooms, notices to all", everyone.map(read));

  for (let number = 1; number <= 20; number += 1) {
    await say(redis, ["group-1", "user-1", "group-2"][number % 3], `number ${number}`);
  }
  await fence(redis, ...everyone);
  step("twenty messages keep their order", everyone.map(read));

  for (const payload of ODD_PAYLOADS) await redis.records(payload);
  await redis.notice(`[1,"two",null]`);
  await redis.notice(`"text"`);
  await redis.notice("null");
  await fence(redis, ...everyone);
  step("odd payloads arrive as JSON.parse reads them", everyone.map(read));

  await say(redis, "group-1", "b".repeat(40_000));
  await fence(redis, ...everyone);
  step("a long message", read(ada));
  for (const browser of everyone) browser.read();

  // The client is cut, misses something, and comes back.
  const away = async (browser, publish) => {
    const outcome = await browser.away(publish);
    await fence(redis, browser);
    return { ...outcome, id: id(browser), saw: read(browser) };
  };

  step("comes back to missed messages", await away(ada, async () => {
    await say(redis, "group-1", "missed 1");
    await redis.notice({ missed: 2 });
    await say(redis, "group-2", "missed 3");
    await say(redis, "group-3", "not hers");
    await say(redis, "user-1", "missed 4");
  }));
  await say(redis, "group-1", "after the return");
  await fence(redis, ...everyone);
  step("is in its rooms again", [read(ada), read(tab)]);
  step("comes back a second time", await away(ada, () => say(redis, "user-1", "missed again")));
  step("comes back having missed nothing", await away(ada, async () => {}));
  step("a visitor comes back to a missed notice", await away(visitor, async () => {
    await say(redis, "group-1", "not for visitors");
    await redis.notice({ missed: "by a visitor" });
  }));

  // Not one event, not even a probe, has reached this client when it is cut.
  const quiet = await open("token-bob");
  await quiet.refused();
  step("comes back though it had received nothing", await away(quiet, () => say(redis, "group-7", "missed from the start")));
  quiet.close();
  for (const browser of everyone) browser.read();

  // Leaving on purpose ends the session. The first request for a namespace keeps the connection, the second shows that
  // the server has read of the leave.
  const before = tab.socket.id;
  const kept = tab.refused();
  tab.close();
  await Promise.all([kept, tab.refused("/another")]);
  await say(redis, "group-1", "while signed out");
  tab.socket.connect();
  await tab.connected();
  await joined(redis, tab, "group-1");
  await fence(redis, tab);
  step("disconnect() and connect() make a new session", {
    recovered: tab.socket.recovered,
    sameId: tab.socket.id === before,
    id: id(tab),
    saw: read(tab),
  });

  for (const browser of everyone) browser.read();
  step("an unknown namespace is refused", { refusal: await ada.refused(), connected: ada.socket.connected, saw: read(ada) });

  ada.socket.emit("hello", { from: "the browser" }, [1, 2]);
  ada.socket.emit("binary", new Uint8Array([1, 2, 3]));
  let answer = "none";
  ada.socket.emit("question", 1, (...values) => (answer = values));
  await ada.refused();
  await fence(redis, ada);
  step("events from the browser are ignored and never acknowledged", { answer, connected: ada.socket.connected, saw: read(ada) });

  const back = ada.reconnected();
  const sidBefore = ada.socket.id;
  ada.socket.emit("too big", "x".repeat(1_100_000));
  await until("the connection has ended", () => ada.count("disconnect"));
  await back;
  await fence(redis, ada);
  step("a message above the limit ends the connection, not the session", {
    recovered: ada.socket.recovered,
    sameId: ada.socket.id === sidBefore,
    saw: read(ada),
  });

  for (const browser of everyone) browser.close();
  return story;
}
