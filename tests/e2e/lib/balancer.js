// A TCP balancer in front of several nodes: each connection goes to the next node that says it is ready.
import { get } from "node:http";
import { connect, createServer } from "node:net";
import { pipeline } from "node:stream";

/** Listens on a free port; `nodes` are servers as `startOurs` returns them. */
export async function startBalancer(nodes) {
  const open = new Set();
  let turn = 0;

  async function readyNode() {
    const first = turn++;
    for (let next = 0; next < nodes.length; next += 1) {
      const node = nodes[(first + next) % nodes.length];
      if (await isReady(node)) return node;
    }
  }

  const server = createServer({ pauseOnConnect: true }, async (client) => {
    client.on("error", () => {});
    open.add(client);
    client.on("close", () => open.delete(client));
    const node = await readyNode();
    if (!node) return client.destroy();
    const upstream = connect(node.port, "127.0.0.1");
    for (const [from, to] of [[client, upstream], [upstream, client]]) pipeline(from, to, () => {});
    client.resume();
  });
  await new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(0, "127.0.0.1", resolve);
  });
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    stop: () =>
      new Promise((resolve) => {
        server.close(resolve);
        for (const client of open) client.destroy();
      }),
  };
}

/** Asks over a connection of its own: one that was kept would be that of the process before. */
const isReady = (node) =>
  new Promise((resolve) => {
    const request = get(`${node.url}/health/ready`, { agent: false }, (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    });
    request.on("error", () => resolve(false));
  });
