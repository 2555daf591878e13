// What a check of who may edit a document costs: asked of Rails directly with Node's fetch, as Hocuspocus servers in
// front of Loomio do, and asked through us. Both against the same fake Rails, in turns, in one run:
//
//   cargo build --release && (cd tests/e2e && npm ci)
//   LOOMIO_CHANNELS_BIN=target/release/loomio-channels node tests/bench/rails.mjs [checks per round] [rounds]
//
// Each process's CPU time is that of /proc/<pid>/stat, so this needs Linux. Every check is another question; "the same
// again" is one that is still remembered.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { start } from "../e2e/lib/children.js";
import { startRedis } from "../e2e/lib/redis.js";
import { startOurs } from "../e2e/lib/servers.js";

const SELF = fileURLToPath(import.meta.url);
/** Checks under way at a time; what our server has under way with Rails by default. */
const CONCURRENCY = 16;
/** Ticks per second of /proc, the same on every Linux that Node runs on. */
const TICKS = 100;

const [role = "5000", ...rest] = process.argv.slice(2);
if (role === "rails") serve();
else if (role === "asker") await ask(...rest);
else await bench(Number(role), Number(rest[0] ?? 5));

/** Rails: 200 to everything. */
function serve() {
  const server = createServer((request, response) => request.resume().on("end", () => response.end()));
  server.keepAliveTimeout = 20_000;
  server.listen(0, "127.0.0.1", () => console.log(`listening on ${server.address().port}`));
}

/** A Hocuspocus server's part: `count` checks, numbered from `first`, a line when they are done. */
async function ask(url, count, first, same) {
  let [next, last] = [Number(first), Number(first) + Number(count)];
  const worker = async () => {
    while (next < last) {
      const id = same === "same" ? (next++, 0) : next++;
      const answer = await fetch(`${url}/api/hocuspocus`, {
        method: "POST",
        headers: { "Content-type": "application/json; charset=UTF-8" },
        body: JSON.stringify({ user_secret: `${id},0123456789abcdef`, document_name: `comment-${id}-body` }),
      });
      if (answer.status !== 200) throw new Error(`answered ${answer.status}`);
      await answer.arrayBuffer();
    }
  };
  const started = performance.now();
  await Promise.all(Array.from({ length: CONCURRENCY }, worker));
  const { user, system } = process.cpuUsage();
  console.log(`done ${(performance.now() - started) / 1e3} ${(user + system) / 1e6}`);
}

function cpuSeconds(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1].split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS;
}

async function bench(count, rounds) {
  const redis = await startRedis();
  const rails = start(process.execPath, [SELF, "rails"]);
  const railsUrl = `http://127.0.0.1:${(await rails.printed(/^listening on (\d+)$/))[1]}`;
  const ours = await startOurs(redis, { env: { PRIVATE_APP_URL: railsUrl, COLLAB_AUTH_PER_MINUTE: "1000000" } });
  let first = 1;

  const round = async (url, same = "") => {
    const before = cpuSeconds(ours.pid);
    // What it takes Node to start is not the checks': it is measured by an asker without any.
    const idle = await asker(url, 0, first, same);
    const { wall, cpu } = await asker(url, count, first, same);
    first += count;
    return { wall, asker: cpu - idle.cpu, ours: cpuSeconds(ours.pid) - before };
  };
  const asker = async (url, count, first, same) => {
    const child = start(process.execPath, [SELF, "asker", url, String(count), String(first), same]);
    const [, wall, cpu] = await child.printed(/^done (\S+) (\S+)$/, 120_000);
    await child.exited;
    return { wall: Number(wall), cpu: Number(cpu) };
  };

  const cases = {
    "Node's fetch to Rails": () => round(railsUrl),
    "through us": () => round(ours.url),
    "through us, the same again": () => round(ours.url, "same"),
  };
  const results = Object.fromEntries(Object.keys(cases).map((name) => [name, []]));
  for (const run of Object.values(cases)) await run(); // warms up
  for (let i = 0; i < rounds; i++) {
    for (const [name, run] of Object.entries(cases)) results[name].push(await run());
  }

  const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
  const perSecond = (list, part) => Math.round(count / median(list.map((result) => result[part])));
  console.log(`${count} checks a round, ${rounds} rounds, medians`);
  console.table(
    Object.fromEntries(
      Object.entries(results).map(([name, list]) => [
        name,
        {
          "checks/s": perSecond(list, "wall"),
          "checks per CPU second of Node": perSecond(list, "asker"),
          "checks per CPU second of ours": name.startsWith("through") ? perSecond(list, "ours") : "",
        },
      ]),
    ),
  );
  await Promise.all([ours.stop(), rails.stop()]);
  await redis.stop();
}
