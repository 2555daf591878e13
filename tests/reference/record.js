// Records fixtures/wire/*.txt: what passes between a browser and the reference server. Needs `npm ci` here and in ../e2e.
//
// Lines starting with ">" were sent by the browser, with "<" by the server. Ids and offsets are replaced by stable ones of
// the same shape, so that recording again changes nothing unless the packages behave differently. The separator between
// packets of a polling payload, U+001E, stands in the files as it is.
import { mkdir, writeFile } from "node:fs/promises";
import { startRedis } from "../e2e/lib/redis.js";
import { startReference } from "../e2e/lib/servers.js";
import { http, openSocket } from "../e2e/lib/wire.js";

const directory = new URL("../../fixtures/wire/", import.meta.url);
const POLLING = "EIO=4&transport=polling";
const WEBSOCKET = "EIO=4&transport=websocket";
const SHOWN_HEADERS = /^(content-type|content-encoding|cache-control|access-control-.*|vary)$/;

// Recording is watched by a person: a pause that proves too short shows as a change of the files.
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const redis = await startRedis();
const server = await startReference(redis);
await mkdir(directory, { recursive: true });
await redis.user("token", { name: "Ada", group_ids: [11], id: 45 });
const say = (body) => redis.records({ room: "group-11", records: { comments: [{ id: 1, body }] } });

/** One file: `play` gets functions that do things on the wire and write them down. */
async function record(name, title, play) {
  const lines = [`# ${title}`];
  const stable = shapes();
  const note = (mark, text) => lines.push(...text.split("\n").map((line) => `${mark} ${line}`.trimEnd()));

  const exchange = async (query, { method = "GET", body, headers = {} } = {}) => {
    const answer = await http(server, `/socket.io/?${query}`, { method, body, headers });
    note(">", stable([`${method} /socket.io/?${query}`, ...Object.entries(headers).map((pair) => pair.join(": "))].join("\n")));
    if (body !== undefined) note(">", `\n${stable(body)}`);
    note("<", [answer.status, ...Object.entries(answer.headers).filter(([header]) => SHOWN_HEADERS.test(header)).map((pair) => pair.join(": "))].join("\n"));
    if (answer.body.length) note("<", `\n${stable(answer.body.toString())}`);
    lines.push("");
    return answer.body.toString();
  };
  const socket = async (query) => {
    const opened = await openSocket(server, query);
    note(">", stable(`WebSocket /socket.io/?${query}`));
    return {
      async send(text) {
        note(">", stable(text));
        opened.send(text);
      },
      /** Writes down what arrives, up to the packet that starts with `prefix`. */
      async until(prefix) {
        const packets = await opened.take((packet) => packet.startsWith(prefix));
        for (const packet of packets) note("<", stable(packet));
        return packets.at(-1);
      },
      async close() {
        opened.terminate();
        await opened.ended();
        note(">", "(connection lost)");
        await pause(50);
      },
    };
  };
  await play({ exchange, socket, aside: (text) => lines.push(`# ${text}`) });
  await writeFile(new URL(`${name}.txt`, directory), `${lines.join("\n").trimEnd()}\n`);
}

/** Replaces session ids, private ids and offsets by numbered ones, the same for the same value. */
function shapes() {
  const known = new Map();
  const counts = { sid: 0, pid: 0, offset: 0 };
  const learn = (kind, value) => {
    if (!known.has(value)) known.set(value, `${kind}${String((counts[kind] += 1)).padStart(20 - kind.length, "0")}`);
  };
  return (text) => {
    for (const [, kind, value] of text.matchAll(/"(sid|pid)":"([^"]+)"/g)) learn(kind, value);
    for (const packet of text.split(/[\n\x1e]/)) {
      const event = packet.match(/^42\[.*,"([^"]+)"\]$/);
      if (event) learn("offset", event[1]);
    }
    // Longest first: of two offsets made in the same millisecond one is the beginning of the other.
    const longestFirst = [...known].sort(([one], [other]) => other.length - one.length);
    return longestFirst.reduce((result, [value, name]) => result.replaceAll(value, name), text);
  };
}

const idOf = (packet) => JSON.parse(packet.slice(packet.indexOf("{")));
const offsetOf = (packet) => JSON.parse(packet.slice(2)).at(-1);

await record("polling", "A polling session: handshake, CONNECT, an event, several in one answer, the end", async ({ exchange, aside }) => {
  const { sid } = idOf(await exchange(`${POLLING}&channel_token=token`, { headers: { origin: "https://loomio.test" } }));
  const session = `${POLLING}&sid=${sid}`;
  await exchange(session, { method: "POST", body: "40" });
  await exchange(session);
  await pause(100); // rooms are joined after the answer
  await say("first");
  await pause(50);
  await exchange(session);
  await say("second");
  await say("third");
  await pause(50);
  await exchange(session);
  aside("events from the browser are ignored");
  await exchange(session, { method: "POST", body: '42["hello",{"a":1}]\x1e3' });
  await exchange(session, { method: "POST", body: "1" });
  await exchange(session);
});

await record("websocket", "A WebSocket session: handshake, CONNECT, events, a lost connection, recovery", async ({ socket, aside }) => {
  const first = await socket(`${WEBSOCKET}&channel_token=token`);
  await first.until("0");
  await first.send("40");
  const { pid } = idOf((await first.until("40")).slice(2));
  await pause(100);
  await say("first");
  await first.until("42");
  await redis.notice({ version: "2.26.1", notice: null, reload: false });
  const offset = offsetOf(await first.until("42"));
  await first.close();
  aside("published meanwhile: two records and one for another group");
  await say("missed one");
  await redis.records({ room: "group-12", records: {} });
  await say("missed two");
  await pause(50);
  const second = await socket(`${WEBSOCKET}&channel_token=token`);
  await second.until("0");
  await second.send(`40${JSON.stringify({ pid, offset })}`);
  await second.until("40");
  await say("live again");
  await second.until("42");
  await second.close();
  aside("a session that the browser ends with 41 is not recovered");
  const third = await socket(`${WEBSOCKET}&channel_token=token`);
  await third.until("0");
  await third.send("40");
  const ended = idOf((await third.until("40")).slice(2));
  await pause(100);
  await say("another");
  const last = offsetOf(await third.until("42"));
  await third.send("41");
  await third.close();
  const fourth = await socket(`${WEBSOCKET}&channel_token=token`);
  await fourth.until("0");
  await fourth.send(`40${JSON.stringify({ pid: ended.pid, offset: last })}`);
  await fourth.until("40");
  aside("there is one namespace");
  await fourth.send("40/elsewhere,");
  await fourth.until("44");
  await fourth.close();
});

await record("upgrade", "From polling to WebSocket", async ({ exchange, socket }) => {
  const { sid } = idOf(await exchange(`${POLLING}&channel_token=token`));
  const session = `${POLLING}&sid=${sid}`;
  await exchange(session, { method: "POST", body: "40" });
  await exchange(session);
  await pause(100);
  const pending = exchange(session);
  await pause(50);
  const upgraded = await socket(`${WEBSOCKET}&sid=${sid}`);
  await upgraded.send("2probe");
  await upgraded.until("3");
  await pending;
  await upgraded.send("5");
  await pause(50);
  await say("over the WebSocket");
  await upgraded.until("42");
  await exchange(session);
  await upgraded.close();
});

await record("errors", "Requests that are refused", async ({ exchange }) => {
  const headers = { origin: "https://loomio.test" };
  for (const query of [
    "",
    "EIO=4&transport=pigeon",
    `${POLLING}&sid=unknown`,
    WEBSOCKET,
    "EIO=3&transport=polling",
    "transport=polling",
  ]) await exchange(query, { headers });
  await exchange(POLLING, { method: "POST", body: "40", headers });
  await exchange(POLLING, { method: "OPTIONS", headers: { ...headers, "access-control-request-method": "POST", "access-control-request-headers": "content-type" } });
  for (const body of ["abc", "4abc", "42{}"]) {
    const { sid } = idOf(await exchange(POLLING));
    await exchange(`${POLLING}&sid=${sid}`, { method: "POST", body: "40" });
    await exchange(`${POLLING}&sid=${sid}`);
    await exchange(`${POLLING}&sid=${sid}`, { method: "POST", body }).catch(() => {});
    await exchange(`${POLLING}&sid=${sid}`);
  }
});

await server.stop();
await redis.stop();
