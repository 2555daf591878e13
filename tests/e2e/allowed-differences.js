// Every difference between our server and the reference that the parity tests accept, and why. Anything else fails.
//
// `event`: an event of ours that is taken out of the transcripts before they are compared.
// `step`: the step with that title must show exactly `reference` there and exactly `ours` here, both laid over what the
// two have in common. A difference that no longer exists fails too, so that this list cannot rot.

export const IGNORED_EVENTS = [
  {
    event: "session",
    why: `A new session starts with one event, 42["session","<offset>"]. The official client keeps the offset of any
      event it receives, so one that has received nothing else can still recover. Loomio does not listen for it.`,
  },
];

/** Headers ours may send with answers of a status where the reference sends none. */
export const ADDED_HEADERS = [
  {
    status: 400,
    header: "cache-control",
    value: "no-store",
    why: `A refusal is true for one moment only; nothing between server and browser should keep it.`,
  },
];

export const STEP_DIFFERENCES = [
  {
    step: "comes back though it had received nothing",
    why: `Node knows no offset for such a client and silently starts over. Ours sent one with the session, so what was
      published meanwhile is replayed.`,
    reference: {
      recovered: false,
      sameId: false,
      saw: ["connect", "disconnect: forced close", "connect"],
    },
    ours: {
      recovered: true,
      sameId: true,
      saw: [
        "connect",
        "disconnect: forced close",
        ["records", `{"room":"group-7","records":{"text":"missed from the start"}}`, "offset"],
        "connect",
      ],
    },
    ignore: ["id"], // follows from sameId
  },
];

const CORS = {
  "access-control-allow-origin": "https://loomio.test",
  "access-control-allow-credentials": "true",
  vary: "origin",
};

export const WIRE_DIFFERENCES = [
  {
    step: "the client bundle",
    why: `Loomio bundles the client itself and never asks for it, so ours does not carry a copy.`,
    reference: { status: 200 },
    ours: { status: 404 },
  },
  {
    step: "what a session nobody knows is told",
    why: `A browser that comes back with a session nobody can read has missed something. Ours starts a new session, says
      so, and replays what it still knows for the user's rooms; records are upserts, so that is safe. Node is silent.`,
    reference: { replayed: false },
    ours: { replayed: true },
  },
  ...["unknown transport", "no transport", "unknown session"].map((title) => ({
    step: `a WebSocket handshake is refused: ${title}`,
    why: `Ours sends the CORS headers with every answer. Browsers ignore them on a WebSocket handshake.`,
    reference: { headers: { "content-type": "text/html" } },
    ours: { headers: { "content-type": "text/html", ...CORS } },
  })),
  {
    step: "a long answer is compressed",
    why: `An answer that depends on accept-encoding has to say so, or a cache could hand it to the wrong client.`,
    reference: { headers: { ...polled(), "content-encoding": "gzip" } },
    ours: { headers: { ...polled(), "content-encoding": "gzip", vary: "accept-encoding, origin" } },
  },
];

function polled() {
  return { "content-type": "text/plain; charset=utf-8", "cache-control": "no-store", ...CORS };
}
