// What a server says on the wire, without a client library in between: handshakes, errors, headers, polling, upgrades,
// malformed input, recovery. Returns a transcript in which everything volatile has been replaced by names.
import { gunzipSync } from "node:zlib";
import { APP_ORIGIN } from "./lib/servers.js";
import { names } from "./lib/names.js";
import { soon, until } from "./lib/wait.js";
import { http, join, openPolling, openSocket, split } from "./lib/wire.js";

const POLLING = "EIO=4&transport=polling";
const WEBSOCKET = "EIO=4&transport=websocket";
const HEADERS = [
  "content-type",
  "content-encoding",
  "cache-control",
  "access-control-allow-origin",
  "access-control-allow-credentials",
  "access-control-allow-methods",
  "access-control-allow-headers",
  "access-control-expose-headers",
  "access-control-max-age",
  "vary",
];

export async function tellWire({ server, redis }) {
  const story = [];
  const name = names();
  const step = (title, saw) => story.push({ step: title, saw });

  const headersOf = ({ headers }) =>
    Object.fromEntries(HEADERS.filter((header) => header in headers).map((header) => [header, plain(header, headers[header])]));
  /** Names in `vary` have no order. */
  const plain = (header, value) => (header === "vary" ? value.toLowerCase().split(/,\s*/).sort().join(", ") : value.toLowerCase());
  const shown = (answer) => ({ status: answer.status, headers: headersOf(answer), body: split(answer.body).map(packetNamed) });
  const packetNamed = (packet) => {
    if (typeof packet !== "string") return { binary: packet.toString("hex") };
    const event = packet.match(/^42(\[.*\])$/s);
    if (event) {
      const [kind, ...args] = JSON.parse(event[1]);
      return [kind, ...args.map((value) => (typeof value === "string" ? "offset" : JSON.stringify(value)))];
    }
    const connect = packet.match(/^40(\{.*\})$/);
    if (connect) {
      const { sid, pid, ...more } = JSON.parse(connect[1]);
      return ["40", { sid: name("sid", sid), pid: name("pid", pid), ...more }];
    }
    return packet
      .replace(/"sid":"([^"]+)"/g, (_all, sid) => `"sid":"${name("sid", sid)}"`)
      .replace(/"pid":"([^"]+)"/g, (_all, pid) => `"pid":"${name("pid", pid)}"`);
  };
  const show = async (title, path, options) => step(title, shown(await http(server, path, options)));
  // What the application does not cause is left out of ordered comparisons.
  const isNoise = (packet) => packet === "2" || packet === "6" || String(packet).startsWith('42["session"');
  const isRecord = (packet) => String(packet).startsWith('42["records"');

  await redis.user("wire", { id: 50, name: "Wire", group_ids: [50] });
  let counter = 0;
  const say = (text) => redis.records({ room: "group-50", records: { text } });
  const token = "&channel_token=wire";

  /** Publishes until a record arrives, which shows that the rooms are joined, then takes every record published so far. */
  async function settle(arrival) {
    const published = [];
    const tick = setInterval(() => published.push(redis.records({ room: "user-50", records: { probe: (counter += 1) } })), 20);
    await arrival(isRecord).finally(() => clearInterval(tick));
    await Promise.all(published);
    const last = `"settled ${(counter += 1)}"`;
    await redis.records({ room: "user-50", records: { text: last.slice(1, -1) } });
    return arrival((packet) => String(packet).includes(last));
  }
  /** Waits until a polling session that has sent CONNECT is in its rooms. Returns everything up to the CONNECT answer. */
  async function signedIn(session) {
    const isConnect = (packet) => packet.startsWith("40");
    const packets = await session.collect((packets) => packets.some(isConnect));
    await settle((matches) => session.collect((packets) => packets.some(matches)));
    return packets;
  }

  async function signIn(session) {
    await session.post("40");
    return signedIn(session);
  }

  // Another session of the same user, which shows how far the server has come.
  const witness = await openSocket(server, WEBSOCKET + token);
  witness.send("40");
  await settle((matches) => witness.take(matches));
  const arrived = (text) => witness.take((packet) => String(packet).includes(`"${text}"`));

  // ── Opening

  await show("opens a polling session", `/socket.io/?${POLLING}`);
  await show("opens for the application's origin", `/socket.io/?${POLLING}`, { headers: { origin: APP_ORIGIN } });
  await show("opens for a foreign origin", `/socket.io/?${POLLING}`, { headers: { origin: "https://elsewhere.test" } });
  step("takes anything below its path", { status: (await http(server, `/socket.io/below?${POLLING}`)).status });
  await show("ignores what it does not know", `/socket.io/?t=abc&${POLLING}&b64=1&channel_token=`);
  {
    const socket = await openSocket(server, WEBSOCKET);
    step("opens over WebSocket", { saw: (await socket.take((packet) => packet.startsWith("0"))).map(packetNamed), extensions: socket.extensions });
    socket.close();
    const foreign = await openSocket(server, WEBSOCKET, { headers: { origin: "https://elsewhere.test" } });
    step("opens over WebSocket from a foreign origin", { refused: Boolean(foreign.refused) });
    foreign.close();
  }

  // ── Refusals

  const origin = { headers: { origin: APP_ORIGIN } };
  await show("no query", "/socket.io/");
  await show("no transport", "/socket.io/?EIO=4");
  await show("unknown transport", "/socket.io/?EIO=4&transport=pigeon", origin);
  await show("transport that is a property name", "/socket.io/?EIO=4&transport=constructor");
  await show("unknown transport and protocol 3", "/socket.io/?EIO=3&transport=pigeon");
  await show("unknown session", `/socket.io/?${POLLING}&sid=unknown`, origin);
  await show("unknown session, posting", `/socket.io/?${POLLING}&sid=unknown`, { method: "POST", body: "40" });
  await show("handshake by POST", `/socket.io/?${POLLING}`, { method: "POST", ...origin });
  await show("handshake by PUT", `/socket.io/?${POLLING}`, { method: "PUT", ...origin });
  await show("handshake by DELETE", `/socket.io/?${POLLING}`, { method: "DELETE" });
  await show("WebSocket without an upgrade", `/socket.io/?${WEBSOCKET}`, origin);
  await show("protocol 3", "/socket.io/?EIO=3&transport=polling", origin);
  await show("no protocol", "/socket.io/?transport=polling", origin);
  await show("protocol that is no number", "/socket.io/?EIO=abc&transport=polling");
  await show("preflight", `/socket.io/?${POLLING}`, {
    method: "OPTIONS",
    headers: { origin: APP_ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "content-type,x-more" },
  });
  await show("preflight for nothing in particular", `/socket.io/?${POLLING}&sid=unknown`, { method: "OPTIONS" });
  for (const [title, query] of [
    ["unknown transport", "EIO=4&transport=pigeon"],
    ["no transport", "EIO=4"],
    ["unknown session", `${WEBSOCKET}&sid=unknown`],
  ]) {
    const { refused } = await openSocket(server, query);
    step(`a WebSocket handshake is refused: ${title}`, refused && { status: refused.status, headers: headersOf(refused), body: refused.body.toString() });
  }
  // The reference completes these handshakes before it hangs up; a browser cannot tell that from a refusal.
  for (const [title, query] of [
    ["protocol 3", "EIO=3&transport=websocket"],
    ["no protocol", "transport=websocket"],
    ["polling", POLLING],
  ]) {
    const socket = await openSocket(server, query);
    await socket.ended();
    step(`a WebSocket handshake fails: ${title}`, { packets: socket.received });
  }
  const outside = async (path) => {
    const { status } = await http(server, path);
    return { path, status };
  };
  step("outside its path", [await outside("/"), await outside("/socket.io"), await outside(`/socket.iox/?${POLLING}`), await outside("/unknown")]);
  {
    const { status } = await http(server, "/socket.io/socket.io.js");
    step("the client bundle", { status });
  }

  // ── A polling session

  {
    const session = await openPolling(server, { query: token, headers: { origin: APP_ORIGIN } });
    step("a POST is answered", shown(await session.post("40")));
    step("CONNECT over polling", (await signedIn(session)).filter((packet) => !isNoise(packet)).map(packetNamed));
    step("several packets in one POST", shown(await session.post(join("3", '42["a",1]', '42["b",{"c":"d"}]', "3"))));

    const pending = session.get();
    await say("small");
    step("a waiting poll is answered", shown(await pending));

    const gathered = await until("what has gathered comes in one answer", async () => {
      for (const text of ["one", "two", "three"]) await say(text);
      await arrived("three");
      const packets = await session.poll();
      if (packets.filter(isRecord).length === 3) return packets;
      await session.collect((more) => [...packets, ...more].filter(isRecord).length === 3);
    });
    step("what has gathered comes in one answer", gathered.map(packetNamed));

    const gzip = { headers: { origin: APP_ORIGIN, "accept-encoding": "gzip" } };
    const encoded = async (text, options) => {
      await say(text);
      const answer = await session.get(options);
      const body = answer.headers["content-encoding"] ? gunzipSync(answer.body) : answer.body;
      return shown({ ...answer, body });
    };
    step("a long answer is compressed", await encoded("long ".repeat(400), gzip));
    step("a short answer is not compressed", await encoded("short", gzip));
    step("nothing is compressed for a client that cannot read it", await encoded("long ".repeat(400), { headers: {} }));
    step("nor with encodings it does not offer", await encoded("long ".repeat(400), { headers: { "accept-encoding": "zstd" } }));
    step("UTF-8", await encoded("héllo € 😀"));

    await session.post("41");
    await say("after leaving");
    await arrived("after leaving");
    await session.post("40");
    step("41 leaves the namespace, 40 enters it again as another session",
      (await session.collect((packets) => packets.some((packet) => packet.startsWith("40")))).filter((packet) => !isNoise(packet)).map(packetNamed));

    step("WebSocket URL of a polling session, without an upgrade", shown(await http(server, `/socket.io/?${WEBSOCKET}&sid=${session.sid}`)));
    await session.post("1");
    step("after the browser's close", shown(await session.get()));
  }

  // ── Ends of polling sessions

  // A server may say that the session is over with a close packet or by not knowing it any more; clients treat both alike.
  const outcome = async (session, stage) => {
    const mark = `mark ${(counter += 1)}`;
    // A session that lives is answered: its CONNECT, or a record.
    if (stage === "fresh") await session.post("40").catch(() => {});
    else await say(mark);
    for (;;) {
      const { status, body } = await soon("the next poll", session.get());
      const packets = split(body);
      if (status !== 200 || packets.includes("1")) return "the session is over";
      if (packets.some((packet) => packet.startsWith("40") || packet.includes(mark))) return "the session goes on";
    }
  };

  const ending = async (title, provoke, stage) => {
    const session = await openPolling(server, { query: token });
    if (stage !== "fresh") await signIn(session);
    const saw = await provoke(session);
    step(title, { saw, after: await outcome(session, stage) });
  };
  await ending("a second poll at a time", async (session) => {
    const answers = await Promise.all([session.get(), session.get()]);
    const [first, second] = answers.sort((one, other) => one.status - other.status);
    return [shown(first), { status: second.status }];
  });
  await ending("an aborted poll", async (session) => {
    const abort = new AbortController();
    const { answer } = await session.begin({ signal: abort.signal });
    abort.abort();
    await answer.catch(() => {});
    await until("the session has ended", async () => (await session.post("3")).status === 400);
  });
  await ending("a poll waits while the browser closes", (session) =>
    until("the poll was not overtaken", async () => {
      const { answer } = await session.begin();
      await session.post("1");
      const answered = await answer;
      if (answered.status === 200) return shown(answered);
      session = await openPolling(server, { query: token });
      await signIn(session);
    }));
  await ending("a body above the limit", async (session) => {
    const answer = await session.post(`4${"x".repeat(1_000_001)}`).catch(() => ({ status: 413 }));
    return { status: answer.status };
  });
  for (const [title, body, stage] of [
    ["unknown packet", "abc", "fresh"],
    ["unknown packet after a good one", join("3", "xyz"), "fresh"],
    ["an event before CONNECT", '42["early"]', "fresh"],
    ["unknown Socket.IO packet", "4abc"],
    ["empty message", "4"],
    ["event without a payload", "42"],
    ["event whose payload is an object", "42{}"],
    ["event whose payload is not JSON", '42["a"'],
    ["event with a bad acknowledgement id", '42abc["a"]'],
    ["event named by a number", "42[1]"],
    ["event with a reserved name", '42["connect"]'],
    ["empty event", "42[]"],
    ["CONNECT with a list", "40[1]", "fresh"],
    ["CONNECT with text", '40"text"', "fresh"],
    ["binary event without its attachment count", '45["a"]'],
    ["acknowledgement of nothing", "437[1]"],
  ]) {
    await ending(`malformed: ${title}`, async (session) => {
      await session.post(body).catch(() => {});
    }, stage);
  }

  // ── Over WebSocket

  const socketSession = async (connect = "40") => {
    const socket = await openSocket(server, WEBSOCKET + token);
    await socket.take((packet) => packet.startsWith("0"));
    if (connect) {
      socket.send(connect);
      socket.first = await socket.take((packet) => packet.startsWith("40"));
      await settle((matches) => socket.take(matches));
    }
    return socket;
  };
  {
    const socket = await socketSession();
    step("CONNECT over WebSocket", socket.first.map(packetNamed));
    socket.send("40/elsewhere,");
    step("another namespace", (await socket.take((packet) => packet.startsWith("44"))).map(packetNamed));
    socket.send('40/elsewhere?with=query,{"a":1}');
    step("another namespace with a query", (await socket.take((packet) => packet.startsWith("44"))).map(packetNamed));
    socket.send('427["question",1]');
    socket.send('42["plain",{"a":[1]}]');
    socket.send('451-["binary",{"_placeholder":true,"num":0}]');
    socket.send(Buffer.from([1, 2, 3]));
    socket.send("40/elsewhere,");
    step("no event is acknowledged", (await socket.take((packet) => packet.startsWith("44"))).map(packetNamed));
    await say("still here");
    step("events from the browser change nothing", (await socket.take(isRecord)).filter((packet) => !isNoise(packet)).map(packetNamed));
    socket.close();
    await socket.ended();
  }
  {
    const socket = await socketSession(null);
    socket.send('40{"any":"auth","is":{"fine":1}}');
    step("CONNECT with a payload", (await socket.take((packet) => packet.startsWith("40"))).map(packetNamed));
    socket.close();
    await socket.ended();
  }
  for (const [title, packets, stage] of [
    ["unknown packet", ["abc"], null],
    ["empty frame", [""], null],
    ["unknown Socket.IO packet", ["4abc"]],
    ["event whose payload is an object", ["42{}"]],
    ["a frame above the limit", [`42["a","${"x".repeat(1_000_001)}"]`]],
    ["an event before CONNECT", ['42["early"]'], null],
    ["text where an attachment was announced", ['451-["a",{"_placeholder":true,"num":0}]', '42["b"]']],
    ["an attachment nobody announced", [Buffer.from([1])]],
    ["CONNECT that is not JSON", ["40{"], null],
  ]) {
    const socket = await socketSession(stage === null ? null : "40");
    for (const packet of [...packets, "40/elsewhere,"]) socket.send(packet);
    await until("the session has ended or answers", () => socket.isClosed() || socket.received.some((packet) => packet.startsWith("44")));
    step(`over WebSocket: ${title}`, { closed: socket.isClosed() });
    socket.terminate();
  }

  // ── Recovery

  {
    const socket = await socketSession();
    const { pid } = JSON.parse(socket.first.at(-1).slice(2));
    await say("the last one seen");
    const [seen] = (await socket.take(isRecord)).slice(-1);
    const offset = JSON.parse(seen.slice(2)).at(-1);
    await server.loses(() => socket.terminate());
    await say("missed one");
    await redis.notice({ missed: "two" });
    await redis.records({ room: "group-51", records: { text: "another room" } });
    await say("missed three");
    await arrived("missed three");

    const resumed = await openSocket(server, WEBSOCKET + token);
    await resumed.take((packet) => packet.startsWith("0"));
    resumed.send(`40${JSON.stringify({ pid, offset })}`);
    const packets = await resumed.take((packet) => packet.startsWith("40"));
    step("what was missed comes before CONNECT, which keeps both ids", [...socket.first, ...packets].filter((packet) => !isNoise(packet)).map(packetNamed));
    await say("live again");
    step("live again", (await resumed.take(isRecord)).filter((packet) => !isNoise(packet)).map(packetNamed));
    resumed.terminate();

    const stray = await openSocket(server, WEBSOCKET + token);
    await stray.take((packet) => packet.startsWith("0"));
    stray.send('40{"pid":"made up","offset":"made up"}');
    const told = await stray.take((packet) => packet.startsWith("40"));
    step("a session nobody knows", told.filter((packet) => packet.startsWith("40")).map(packetNamed));
    step("what a session nobody knows is told", { replayed: told.some((packet) => packet.includes("missed three")) });
    stray.terminate();
    for (const odd of ['{"pid":1,"offset":2}', '{"pid":null}', '{"pid":"only"}', '{"offset":"only"}']) {
      const other = await openSocket(server, WEBSOCKET + token);
      await other.take((packet) => packet.startsWith("0"));
      other.send(`40${odd}`);
      step(`resumes with ${odd}`, (await other.take((packet) => packet.startsWith("40"))).filter((packet) => packet.startsWith("40")).map(packetNamed));
      other.terminate();
    }
  }

  // ── Upgrade

  const upgrade = async (session) => {
    const socket = await openSocket(server, `${WEBSOCKET}&sid=${session.sid}`);
    socket.send("2probe");
    const [answer] = await socket.take(() => true);
    return { socket, answer };
  };
  {
    const session = await openPolling(server, { query: token });
    await signIn(session);
    const pending = session.poll();
    const { socket, answer } = await upgrade(session);
    const released = (await pending).map(packetNamed);
    await say("between probe and upgrade");
    socket.send("5");
    await say("after the upgrade");
    const after = [];
    while (after.filter(isRecord).length < 2) after.push(...(await socket.take(isRecord)));
    step("upgrade", { answer, released, after: after.filter((packet) => !isNoise(packet)).map(packetNamed) });
    step("polling an upgraded session", shown(await session.get()));
    const second = await openSocket(server, `${WEBSOCKET}&sid=${session.sid}`);
    await second.ended();
    await say("still upgraded");
    step("a second WebSocket for it is turned away", (await socket.take(isRecord)).filter((packet) => !isNoise(packet)).map(packetNamed));
    socket.close();
    await socket.ended();
    step("after its end", shown(await session.get()));
  }
  {
    const session = await openPolling(server, { query: token });
    await signIn(session);
    const probe = await openSocket(server, `${WEBSOCKET}&sid=${session.sid}`);
    probe.terminate();
    await say("after a probe that was dropped");
    step("a dropped probe leaves the polling session alone", (await session.collect((packets) => packets.some(isRecord))).filter((packet) => !isNoise(packet)).map(packetNamed));
    const { socket } = await upgrade(session);
    socket.terminate();
    await say("after a probe that went silent");
    step("so does one dropped after its answer", (await session.collect((packets) => packets.some(isRecord))).filter((packet) => !isNoise(packet)).map(packetNamed));
    await session.post("1");
  }

  witness.close();
  return story;
}
