// Proxies in front of our nodes, with the very files that the README tells people to use: only addresses are replaced.
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { start } from "./children.js";
import { freePort } from "./ports.js";
import { until } from "./wait.js";

const recipes = resolve(dirname(fileURLToPath(import.meta.url)), "../../../fixtures/proxies");

/** What starts each, from the text of its recipe: files to write, and the command. `address` is where it listens. */
const PROXIES = {
  "nginx.conf": (text, { address, directory }) => nginx(text.replace("listen 80;", `listen ${address};`), directory),
  "nginx-proxy.conf": (text, { address, directory }) => nginx(text.replace("listen 80;", `listen ${address};`), directory),
  "haproxy.cfg": (text, { address, directory }) => ({
    files: { "haproxy.cfg": text.replace("bind :80", `bind ${address}`) },
    command: ["haproxy", ["-db", "-f", join(directory, "haproxy.cfg")]],
  }),
  Caddyfile: (text, { address, directory }) => ({
    // Plain HTTP on our port, and no second port for administration.
    files: { Caddyfile: `{\n\tadmin off\n\tauto_https off\n}\n${text.replace("channels.example.org {", `http://${address} {`)}` },
    command: ["caddy", ["run", "--adapter", "caddyfile", "--config", join(directory, "Caddyfile")]],
    env: { XDG_DATA_HOME: directory, XDG_CONFIG_HOME: directory },
    // It would wait for browsers to leave.
    signal: "SIGKILL",
  }),
  "traefik.yml": (text, { address, directory }) => ({
    // Plain HTTP on our port.
    files: {
      "traefik.yml": text
        .replace("Host(`channels.example.org`)", "Host(`127.0.0.1`)")
        .replace(/\n +tls:\n +certResolver: \w+/, ""),
    },
    command: [
      process.env.TRAEFIK_BIN,
      [
        `--entryPoints.web.address=${address}`,
        `--providers.file.filename=${join(directory, "traefik.yml")}`,
        "--global.checkNewVersion=false",
      ],
    ],
    signal: "SIGKILL",
  }),
};

function nginx(recipe, directory) {
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    .map((name) => `${name}_temp_path ${join(directory, name)};`).join(" ");
  const main = `daemon off; worker_processes 1; pid ${join(directory, "pid")}; error_log stderr warn;
    events { worker_connections 1024; }
    http { access_log off; ${temporary} include ${join(directory, "channels.conf")}; }`;
  return {
    files: { "nginx.conf": main, "channels.conf": recipe },
    command: ["nginx", ["-p", directory, "-c", join(directory, "nginx.conf")]],
  };
}

/** Names of the recipes that have a program to run them. Traefik, of 185 MB, must be named by its path. */
export const RECIPES = Object.keys(PROXIES).filter((name) => name !== "traefik.yml" || process.env.TRAEFIK_BIN);

/** Starts the proxy of `recipe` in front of nodes at these ports; it answers when this resolves. */
export async function startProxy(recipe, ports) {
  const directory = await mkdtemp(join(tmpdir(), "channels-proxy-"));
  const port = await freePort();
  const address = `127.0.0.1:${port}`;
  let text = await readFile(join(recipes, recipe), "utf8");
  ports.forEach((node, index) => (text = text.replaceAll(`channels-${index + 1}:5000`, `127.0.0.1:${node}`)));
  if (/channels-\d:5000/.test(text)) throw new Error(`${recipe} names more nodes than there are`);
  const { files, command, env, signal } = PROXIES[recipe](text, { address, directory });
  await Promise.all(Object.entries(files).map(([name, content]) => writeFile(join(directory, name), content)));
  const child = start(...command, { env: { PATH: `${process.env.PATH}:/usr/sbin`, ...env } });
  const url = `http://${address}`;
  await until(`${recipe} passes a request on`, () => {
    child.assertRunning();
    return fetch(`${url}/health/live`).then(({ ok }) => ok, () => false);
  });
  return {
    ...child,
    url,
    async stop() {
      await child.stop(signal);
      await rm(directory, { recursive: true, force: true });
    },
  };
}
