// The official Hocuspocus server asks us who may edit, the official provider opens documents: before, during and after
// a restart of Rails.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { HocuspocusProvider, HocuspocusProviderWebsocket } from "@hocuspocus/provider";
import { Server } from "@hocuspocus/server";
import { WebSocket } from "ws";
import * as Y from "yjs";
import { onAuthenticate } from "./lib/on-authenticate.js";
import { freePort } from "./lib/ports.js";
import { startRails } from "./lib/rails.js";
import { startRedis } from "./lib/redis.js";
import { OUR_BINARY, startOurs } from "./lib/servers.js";
import { until } from "./lib/wait.js";

if (!OUR_BINARY) throw new Error("set LOOMIO_CHANNELS_BIN to the path of the binary to test");
const SECRET = "5ecre7ofAda";
const ADA = `12,${SECRET}`;
const FREE_PART = "wh1chd0cument";

describe("a Hocuspocus server that asks us", { timeout: 300_000 }, () => {
  let redis, rails, ours, hocuspocus, url;
  const open = new Set();

  before(async () => {
    redis = await startRedis();
    rails = await startRails(({ user_secret }) => user_secret === ADA);
    ours = await startOurs(redis, { env: { PRIVATE_APP_URL: rails.url } });
    const port = await freePort();
    hocuspocus = new Server({ port, address: "127.0.0.1", quiet: true, onAuthenticate: onAuthenticate(ours.url) });
    await hocuspocus.listen();
    url = `ws://127.0.0.1:${port}`;
  });
  afterEach(() => {
    for (const editor of open) editor.close();
    open.clear();
  });
  after(async () => {
    await hocuspocus?.destroy();
    await ours?.stop();
    await rails?.down();
    await redis?.stop();
  });

  /** Opens a document as Loomio's editor does, with a socket of its own. */
  const edit = (name, token = ADA) => {
    const document = new Y.Doc();
    const websocketProvider = new HocuspocusProviderWebsocket({ url, WebSocketPolyfill: WebSocket });
    const provider = new HocuspocusProvider({ websocketProvider, name, token, document });
    provider.attach();
    const editor = { document, provider, synced: false, refused: false };
    provider.on("synced", () => (editor.synced = true));
    provider.on("authenticationFailed", () => (editor.refused = true));
    editor.close = () => {
      provider.destroy();
      websocketProvider.destroy();
      document.destroy();
    };
    open.add(editor);
    return editor;
  };
  const synced = (...editors) => until("all are synced", () => editors.every((editor) => editor.synced));

  test("lets in who may edit", async () => {
    const [one, other] = [edit(`comment-1-${FREE_PART}`), edit(`comment-1-${FREE_PART}`)];
    await synced(one, other);
    one.document.getText("body").insert(0, "Hello");
    await until("the other has it", () => other.document.getText("body").toString() === "Hello");
    assert.deepEqual(rails.asked[0], {
      method: "POST",
      url: "/api/hocuspocus",
      user_secret: ADA,
      document_name: `comment-1-${FREE_PART}`,
    });
  });

  test("keeps out who may not", async () => {
    const stranger = edit(`comment-1-${FREE_PART}`, "13,wr0ngsecret");
    await until("the stranger is refused", () => stranger.refused);
    assert.equal(stranger.synced, false);
  });

  test("a restart of Rails is a pause, not a refusal", async () => {
    await rails.down();
    const during = [2, 3, 4].map((id) => edit(`comment-${id}-${FREE_PART}`));
    await until("ours has seen that Rails is down", () => ours.lines.some((line) => /cannot ask rails/.test(line)));
    assert.ok(during.every(({ synced, refused }) => !synced && !refused), "they wait");
    await rails.up();
    await synced(...during);
    assert.ok(during.every(({ refused }) => !refused));
    const after = edit(`comment-5-${FREE_PART}`);
    await synced(after);
  });

  test("the log tells types, users and statuses, and nothing else of whoever asks", () => {
    const lines = ours.lines.join("\n");
    assert.match(lines, /kind="comment" user="12" status=200 attempts=1 ms=\d+/);
    assert.match(lines, /kind="comment" user="13" status=401/);
    for (const secret of [SECRET, FREE_PART, "wr0ngsecret"]) assert.ok(!lines.includes(secret), secret);
  });
});

describe("an address of Rails that is wrong", { timeout: 300_000 }, () => {
  const ask = (ours) =>
    fetch(`${ours.url}/api/hocuspocus`, {
      method: "POST",
      body: JSON.stringify({ user_secret: ADA, document_name: `comment-1-${FREE_PART}` }),
    });

  test("is named once a minute, not followed, and grants nothing", async () => {
    const redis = await startRedis();
    const page = await startRails(() => true);
    const rails = await startRails(() => true, { redirect: `${page.url}/?${FREE_PART}` });
    const running = [];
    try {
      for (const [env, named] of [
        [{ APP_URL: rails.url }, /rails redirects to http:\/\/127\.0\.0\.1:\d+; set APP_URL/],
        [{ CANONICAL_HOST: "" }, /set PRIVATE_APP_URL, APP_URL, PUBLIC_APP_URL or CANONICAL_HOST/],
      ]) {
        const ours = await startOurs(redis, { env });
        running.push(ours);
        for (let i = 0; i < 5; i++) {
          const answer = await ask(ours);
          assert.deepEqual([answer.status, answer.headers.get("retry-after")], [503, "60"]);
        }
        const lines = await until("it is in the log", () => {
          const lines = ours.lines.filter((line) => named.test(line) && line.includes("ERROR"));
          return lines.length > 0 && lines;
        });
        assert.equal(lines.length, 1);
        assert.ok(!ours.lines.join().includes(FREE_PART));
      }
      assert.deepEqual([rails.asked.length, page.asked.length], [5, 0]);
    } finally {
      for (const ours of running) await ours.stop();
      await Promise.all([rails.down(), page.down()]);
      await redis.stop();
    }
  });
});

describe("a Rails behind TLS", { timeout: 300_000 }, () => {
  test("is trusted with a certificate of the system's, and not without", async () => {
    const directory = await mkdtemp(join(tmpdir(), "channels-tls-"));
    const [key, cert] = [join(directory, "key.pem"), join(directory, "cert.pem")];
    execFileSync("openssl", [
      ...["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"],
      ...["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"],
      ...["-keyout", key, "-out", cert],
    ], { stdio: "ignore" });
    const redis = await startRedis();
    const rails = await startRails(() => true, { tls: { key: await readFile(key), cert: await readFile(cert) } });
    const ask = async (env) => {
      const ours = await startOurs(redis, { env: { PRIVATE_APP_URL: rails.url, RAILS_HOLD_SECONDS: "1", ...env } });
      const body = JSON.stringify({ user_secret: ADA, document_name: "comment-1-body" });
      const { status } = await fetch(`${ours.url}/api/hocuspocus`, { method: "POST", body });
      await ours.stop();
      return { status, lines: ours.lines.join("\n") };
    };
    try {
      assert.equal((await ask({ SSL_CERT_FILE: cert })).status, 200);
      const { status, lines } = await ask({});
      assert.equal(status, 503);
      assert.match(lines, /cannot ask rails.*certificate/i);
      assert.equal(rails.asked.length, 1);
    } finally {
      await rails.down();
      await redis.stop();
      await rm(directory, { recursive: true });
    }
  });
});
