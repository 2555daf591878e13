// Three browsers on one page, and a hand on the bus.
//
// Answers for: what is shown and what the buttons do. Must not know: a packet, a ping, an offset's meaning.

import { Client } from "/demo/client.js";

const FEED_LIMIT = 60;
const BURST = 20;

const ROOM_NAMES = {
  "group-1": "Board",
  "group-2": "Garden Co-op",
  "user-1": "Only Ada",
  "user-2": "Only Grace",
  notice: "Notice",
};

const BROWSERS = [
  {
    key: "ada",
    name: "Ada Lovelace",
    about: "In both groups",
    token: "ada-demo-token",
    rooms: ["group-1", "group-2", "user-1", "notice"],
  },
  {
    key: "grace",
    name: "Grace Hopper",
    about: "In one group",
    token: "grace-demo-token",
    rooms: ["group-2", "user-2", "notice"],
  },
  {
    key: "visitor",
    name: "Visitor",
    about: "Not signed in",
    // Rails gives a visitor a token nobody is registered under.
    token: `visitor-${Math.random().toString(16).slice(2)}`,
    rooms: ["notice"],
  },
];

const element = (id) => document.getElementById(id);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// ---- The three browsers

class Card {
  #client;
  #count = 0;

  constructor({ key, name, about, token, rooms }) {
    this.root = element("card").content.firstElementChild.cloneNode(true);
    this.root.dataset.testid = `card-${key}`;
    this.root.classList.add(key);
    this.root.setAttribute("aria-label", name);
    this.#part(".avatar").textContent = name[0];
    this.#part("h2").textContent = name;
    this.#part(".about").textContent = about;
    this.#part(".rooms").append(...rooms.map(roomTag));
    this.#part(".feed").setAttribute("aria-label", `Updates of ${name}`);
    this.#part(".cut").addEventListener("click", () => this.cut(true));
    this.#part(".return").addEventListener("click", () => this.return(true));
    this.#client = new Client(token, this);
  }

  cut(byHand = false) {
    this.#client.cut();
    this.#show("cut", "Cut off");
    this.#offer("return", byHand);
  }

  return(byHand = false) {
    this.#offer("cut", byHand);
    this.#client.connect();
  }

  // What the client reports.

  connecting() {
    this.#part(".cut").disabled = false;
    if (this.#part(".state").dataset.state !== "reconnecting") this.#show("connecting", "Connecting");
  }

  lost() {
    this.#show("reconnecting", "Reconnecting");
  }

  connected({ sid, recovered, resumed, missed }) {
    this.#part(".sid").textContent = sid ?? "none";
    if (recovered) {
      this.#show("recovered", missed ? `Recovered ${plural(missed, "missed update")}` : "Recovered, nothing missed");
    } else if (resumed) {
      this.#show("fresh", "Connected anew, not recovered");
    } else {
      this.#show("connected", "Connected");
    }
  }

  event(name, payload, { recovered, offset }) {
    if (offset) {
      this.#part(".offset").textContent = offset;
      this.#part(".offset").title = offset;
    }
    if (name !== "records" && name !== "notice") return;
    this.#count += 1;
    this.#part(".count").textContent = plural(this.#count, "update");
    this.#part(".empty").hidden = true;
    const feed = this.#part(".feed");
    feed.prepend(feedItem(name, payload, recovered));
    if (feed.childElementCount > FEED_LIMIT) feed.lastElementChild.remove();
  }

  #show(state, text) {
    const shown = this.#part(".state");
    shown.dataset.state = state;
    shown.textContent = text;
    this.root.dataset.state = state;
  }

  // One of the two buttons is there at a time; the keyboard stays where the hand was.
  #offer(which, byHand) {
    this.#part(".cut").hidden = which !== "cut";
    this.#part(".return").hidden = which !== "return";
    if (byHand) this.#part(`.${which}`).focus();
  }

  #part(selector) {
    return this.root.querySelector(selector);
  }
}

function roomTag(room) {
  const tag = document.createElement("li");
  tag.className = "room";
  tag.dataset.room = room;
  tag.textContent = room;
  return tag;
}

function feedItem(kind, payload, recovered) {
  const room = kind === "notice" ? "notice" : String(payload?.room ?? "");
  const item = document.createElement("li");
  Object.assign(item.dataset, { kind, room, recovered: String(recovered) });
  item.append(
    span("from", ROOM_NAMES[room] ?? room),
    span("when", describeArrival(payload, recovered)),
    span("text", kind === "notice" ? describeNotice(payload) : describeRecords(payload)),
  );
  return item;
}

function span(name, text) {
  const made = document.createElement("span");
  made.className = name;
  made.textContent = text;
  return made;
}

function describeNotice(payload) {
  return payload?.notice || (payload?.reload ? "Please reload" : `Version ${payload?.version ?? "unknown"}`);
}

function describeRecords(payload) {
  const records = payload?.records ?? {};
  const said = records.comments?.[0]?.body ?? records.events?.[0]?.kind;
  return said ? String(said) : Object.keys(records).join(", ") || "an empty update";
}

// How long an update of this page was on its way; for others there is only the time of day.
const sent = new Map();

function describeArrival(payload, recovered) {
  const started = sent.get(payload?.records?.events?.[0]?.id);
  if (recovered) return "recovered";
  if (started === undefined) return new Date().toLocaleTimeString();
  return `in ${Math.max(1, Math.round(performance.now() - started))} ms`;
}

// ---- The hand on the bus

let lastId = Date.now() % 1_000_000_000;

function records(room, text, id) {
  const author = room === "user-2" ? 2 : 1;
  return {
    records: {
      events: [{ id, kind: "new_comment", actor_id: author }],
      comments: [{ id, body: text, author_id: author }],
    },
  };
}

function notice(text) {
  return { version: "2.26.1", notice: text, reload: false };
}

async function publish(room, payload) {
  const response = await fetch(`/demo/publish/${room}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(payload),
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `the server answered ${response.status}`);
  return answer.receivers;
}

async function publishRecords(room, text) {
  lastId += 1;
  sent.set(lastId, performance.now());
  if (sent.size > 1000) sent.delete(sent.keys().next().value);
  return publish(room, records(room, text, lastId));
}

async function publishMany(room, count) {
  let receivers = 0;
  for (let number = 1; number <= count; number += 1) {
    receivers = await publishRecords(room, `${text()} (${number} of ${count})`);
    await pause(30);
  }
  return receivers;
}

// Runs one of the panel's actions and says how it went.
async function act(button, done, work) {
  button.disabled = true;
  try {
    const receivers = await work();
    report(receivers > 0 ? done : "Published, but nobody listens on the bus.", receivers === 0);
  } catch (error) {
    report(`Not published: ${error.message}.`, true);
  } finally {
    button.disabled = false;
  }
}

function report(message, problem = false) {
  const result = element("result");
  result.textContent = message;
  result.className = `result ${problem ? "problem" : "done"}`;
}

const room = () => element("room").value;
const text = () => element("text").value.trim() || "Hello";

// ---- The same from a terminal

let shown = "records";

function showCommand() {
  const [target, payload] = shown === "records" ? [room(), records(room(), text(), 1)] : ["notice", notice(text())];
  const quoted = JSON.stringify(payload).replaceAll("'", String.raw`'\''`);
  element("command").textContent = `echo '${quoted}' | loomio-channels publish ${target} - --demo ${location.host}`;
  for (const kind of ["records", "notice"]) {
    element(`show-${kind}`).setAttribute("aria-pressed", String(kind === shown));
  }
}

async function copyCommand() {
  const command = element("command");
  try {
    await navigator.clipboard.writeText(command.textContent);
    element("copy").textContent = "Copied";
  } catch {
    // Clipboards are for secure pages only; elsewhere the command is ready to be copied by hand.
    getSelection().selectAllChildren(command);
    element("copy").textContent = "Selected";
  }
  await pause(1500);
  element("copy").textContent = "Copy";
}

// ---- Setting the scene

const cards = Object.fromEntries(BROWSERS.map((browser) => [browser.key, new Card(browser)]));
element("browsers").append(...Object.values(cards).map((card) => card.root));
for (const card of Object.values(cards)) card.return();

element("publish-form").addEventListener("submit", (event) => {
  event.preventDefault();
  act(event.submitter ?? event.target.querySelector(".primary"), `Published to ${room()}.`, () =>
    publishRecords(room(), text()),
  );
});
element("burst").addEventListener("click", ({ target }) =>
  act(target, `Published ${BURST} updates to ${room()}.`, () => publishMany(room(), BURST)),
);
element("notice").addEventListener("click", ({ target }) =>
  act(target, "Sent a notice to all.", () => publish("notice", notice(text()))),
);
element("tour").addEventListener("click", ({ target }) =>
  act(target, "Ada is back, with everything she missed.", async () => {
    report("Ada is cut off while 20 updates are published.");
    cards.ada.root.scrollIntoView({ block: "nearest" });
    cards.ada.cut();
    try {
      await pause(700);
      return await publishMany("group-2", BURST);
    } finally {
      await pause(900);
      cards.ada.return();
    }
  }),
);
for (const id of ["room", "text"]) element(id).addEventListener("input", showCommand);
for (const kind of ["records", "notice"]) {
  element(`show-${kind}`).addEventListener("click", () => {
    shown = kind;
    showCommand();
  });
}
element("copy").addEventListener("click", copyCommand);
showCommand();
